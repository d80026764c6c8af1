// TSV: the mean over noisy gradients, reduced over the channels.
#pragma once

#include <cstdint>

namespace cortex_fast {

enum class Reduction { kAbsMax, kMax, kMean };

// Gradients [batch, samples, channels, height, width]; strides in elements, in that order, of any sign and value.
struct Gradients {
  const float* data;
  std::int64_t sizes[5];
  std::int64_t strides[5];
};

// out [batch, height, width], contiguous, every element written. Needs samples >= 1 and channels >= 1; the other sizes
// may be 0. NaN propagates. The same bits for every number of threads. Throws std::bad_alloc, and nothing else.
void token_saliency(const Gradients& grads, Reduction reduction, float* out, int threads);

}  // namespace cortex_fast
