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
  const double* schedule;  // [4] on the device: tau, draw, lr, step count, which replace the numbers; or null
  Products products;
  void* scratch;  // of as many bytes as the ..._scratch function returns, aligned to 256; written anew by each call
  void* stream;   // cudaStream_t
};

// The statistics of each row of scores, with y = exp((s - largest_score) / tau - log_denominator). The same as the
// Triton kernels compute.
struct RowStats {
  float* largest_score;    // [problems rows]
  float* log_denominator;  // [problems rows]
  std::int64_t* selected;  // [problems rows]
  float* soft_embedding;   // y C [problems rows, channels]
};

// embedding [problems rows, channels], row_stats.selected always. Where the selection is hard the other statistics may
// be null, and are then not computed: P is read once without any product.
std::size_t gumbel_codebook_scratch(std::int64_t problems, std::int64_t rows, std::int64_t codes, std::int64_t channels,
                                    bool with_row_stats);
Status gumbel_codebook(const GumbelCodebook& args, const Launch& launch, float* embedding, const RowStats& row_stats);

// grad_logits [problems rows, codes] from upstream dE [problems rows, channels] and the forward pass's row statistics.
// grad_codebook [codes, channels] of a soft selection, or null. (A hard selection's is dE summed by index.)
std::size_t gumbel_codebook_backward_scratch(std::int64_t problems, std::int64_t rows, std::int64_t codes,
                                             std::int64_t channels);
Status gumbel_codebook_backward(const float* upstream, const GumbelCodebook& args, const RowStats& row_stats,
                                const Launch& launch, float* grad_logits, float* grad_codebook);

// logits, which args.logits points to as well, after one step along dP; scratch as of the backward pass.
Status gumbel_codebook_step(const GumbelCodebook& args, const float* upstream, const Update& update,
                            const RowStats& row_stats, const Launch& launch, float* logits);

}  // namespace cuda
}  // namespace cortex_fast
