// gumbel_codebook.h's operators on a GPU: every pointer is the device's, float32 and contiguous, and every call only
// launches kernels on the caller's stream: no allocation, no wait, no look at the device's memory, so that a CUDA graph
// can capture it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cortex_fast/cuda.h"
#include "cortex_fast/gumbel_codebook.h"

namespace cortex_fast {
namespace cuda {

// How exact products are. Floats are taken as sums of three bfloat16, and of the nine products of two such sums kExact
// takes the six largest: no worse than float32's own arithmetic. kHigh takes three: some 16 bits of a product, what
// torch.set_float32_matmul_precision calls "high".
enum class Products { kExact = 0, kHigh = 1 };

struct Launch {
  const double* schedule;  // [4] on the device: tau, draw, lr, step, which then stand for the numbers; or null
  Products products;
  void* scratch;  // of as many bytes as the ..._scratch function says, aligned to 256; written anew by each call
  void* stream;   // cudaStream_t
};

// What the forward pass keeps of a row, float32 [problems rows, 3 + channels]: the largest score, the logarithm of y's
// denominator behind it, the index's bits (int32), y C. The same as the Triton kernels keep.
constexpr std::int64_t kKept = 3;

// embedding [problems rows, channels], index [problems rows]; kept may be null where the selection is hard, and is
// then spared: P is read once without any product.
std::size_t gumbel_codebook_scratch(std::int64_t problems, std::int64_t rows, std::int64_t codes, std::int64_t channels,
                                    bool keep);
Status gumbel_codebook(const GumbelCodebook& args, bool hard, const Launch& launch, float* embedding,
                       std::int64_t* index, float* kept);

// grad_logits [problems rows, codes] from upstream dE [problems rows, channels] and what the forward pass kept.
// grad_codebook [codes, channels] of a soft selection, or null. (A hard selection's is dE summed by index.)
std::size_t gumbel_codebook_backward_scratch(std::int64_t problems, std::int64_t rows, std::int64_t codes,
                                             std::int64_t channels);
Status gumbel_codebook_backward(const GumbelCodebook& args, const float* upstream, const float* kept,
                                const Launch& launch, float* grad_logits, float* grad_codebook);

// logits, which args.logits points to as well, after one step along dP; scratch as of the backward pass.
Status gumbel_codebook_step(const GumbelCodebook& args, const float* upstream, const float* kept, const Update& update,
                            const Launch& launch, float* logits);

}  // namespace cuda
}  // namespace cortex_fast
