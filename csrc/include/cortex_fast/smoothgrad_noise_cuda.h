// The operator of smoothgrad_noise.h on a GPU.
#pragma once

#include <cstdint>

#include "cortex_fast/cuda.h"
#include "cortex_fast/half.h"

namespace cortex_fast {
namespace cuda {

// T: float, BFloat16 or Float16. Every pointer is the device's, every array contiguous. Neighbouring images of the same
// item share the cost of its draws; the result does not depend on it.
template <typename T>
struct NoisyCopies {
  const T* x;          // [batch, channels, positions]
  const float* sigma;  // [batch]
  std::int64_t num_samples;
  std::uint64_t seed;
  const std::int64_t* item_ids;  // [batch], in [0, 2^32)
  bool antithetic;               // samples 2 j and 2 j + 1 are x +- sigma e of draw j
  std::int64_t first_sample;     // the number of the first of the samples; even if antithetic
  const float* normals;          // e [batch, num_samples, channels, positions], or null: drawn
  std::int64_t batch, channels, positions;
};

// out [batch, num_samples, channels, positions].
template <typename T>
Status smoothgrad_noise(const NoisyCopies<T>& args, T* out, void* stream);

}  // namespace cuda
}  // namespace cortex_fast
