// smoothgrad_noise.h's operator on a GPU.
#pragma once

#include <cstdint>

#include "cortex_fast/cuda.h"
#include "cortex_fast/half.h"

namespace cortex_fast {
namespace cuda {

// T: float, BFloat16 or Float16. Every pointer is the device's, every array contiguous. Images in a row that have the
// same item share its draws' cost; the result does not depend on it.
template <typename T>
struct NoisyCopies {
  const T* x;                 // [batch, channels, positions]
  const float* sigma;         // [batch]
  const float* noise;         // [batch, samples, channels, positions], or null: drawn
  const std::int64_t* items;  // [batch], in [0, 2^32)
  std::int64_t batch, samples, channels, positions;
  std::int64_t first_sample;  // the number of the first of the samples; even where antithetic
  std::uint64_t seed;
  bool antithetic;  // samples 2 j and 2 j + 1 are x +- sigma e of draw j
};

// out [batch, samples, channels, positions].
template <typename T>
Status smoothgrad_noise(const NoisyCopies<T>& args, T* out, void* stream);

}  // namespace cuda
}  // namespace cortex_fast
