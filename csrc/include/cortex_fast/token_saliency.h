// TSV: the mean over noisy gradients, reduced over the channels.
#pragma once

#include <cstdint>

#include "cortex_fast/half.h"
#include "cortex_fast/run.h"

namespace cortex_fast {

enum class Reduction { kAbsMax, kMax, kMean };

// Gradients [batch, samples, channels, height, width] of float, BFloat16 or Float16; strides in elements, in that
// order, of any sign and value.
template <typename T>
struct Gradients {
  const T* data;
  std::int64_t sizes[5];
  std::int64_t strides[5];
};

// out [batch, height, width], contiguous, every element written. Needs samples >= 1 and channels >= 1; the other sizes
// may be 0. NaN propagates. Every number of threads gives the same bits. Throws nothing but std::bad_alloc.
template <typename T>
void token_saliency(const Gradients<T>& grads, Reduction reduction, float* out, const Run& run);

}  // namespace cortex_fast
