// The operators of token_saliency.h and concept_counts.h on a GPU, alone or in one pass over the gradients.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cortex_fast/concept_counts.h"
#include "cortex_fast/cuda.h"
#include "cortex_fast/token_saliency.h"

namespace cortex_fast {
namespace cuda {

enum class Token { kUint8, kInt16, kUint16, kInt32, kInt64 };

// A count of the tokens at each image's top_n positions by TSV; ties go to the lower position, a NaN is the largest. A
// token or a label out of range is not counted. Every pointer is the device's.
struct Counting {
  const void* tokens;          // [batch, height, width], of `type`; strides in elements
  const std::int64_t* labels;  // [batch]
  std::int64_t top_n, num_concepts, codebook_size;
  Per per;
  Token type;
  std::int64_t strides[3];
  std::int64_t* counts;  // [num_concepts, codebook_size], added to; null: nothing is counted
};

// out [batch, height, width], contiguous. Sums are in double, and the same bits come out each time. Needs as many bytes
// of scratch as the second function returns, aligned to 8.
template <typename T>
Status token_saliency(const Gradients<T>& grads, Reduction reduction, const Counting& counting, void* scratch,
                      float* out, void* stream);
template <typename T>
std::size_t token_saliency_scratch(const Gradients<T>& grads);

Status concept_counts(const Grids<float>& tsv, const Counting& counting, std::int64_t batch, std::int64_t height,
                      std::int64_t width, void* stream);

}  // namespace cuda
}  // namespace cortex_fast
