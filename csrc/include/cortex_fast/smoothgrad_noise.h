// N noisy copies of each embedding: x + sigma e, e from the shared stream.
#pragma once

#include <cstdint>

#include "cortex_fast/half.h"
#include "cortex_fast/run.h"

namespace cortex_fast {

// T: float, BFloat16 or Float16. Arrays are contiguous.
//
// Images of the same item share its noise: `order` [batch] lists the images item by item; group g has those from
// group_starts[g] to group_starts[g + 1], and item group_items[g].
template <typename T>
struct NoisyCopies {
  const T* x;          // [batch, channels, positions]
  const float* sigma;  // [batch]
  std::int64_t num_samples;
  std::uint64_t seed;
  const std::int64_t* order;
  const std::int64_t* group_starts;  // [groups + 1]
  const std::int64_t* group_items;   // [groups], in [0, 2^32)
  bool antithetic;                   // samples 2 j and 2 j + 1 are x +- sigma e of draw j
  std::int64_t first_sample;         // number of the first sample; must be even when antithetic
  const float* normals;              // e [batch, num_samples, channels, positions], or null: drawn
  std::int64_t batch, groups, channels, positions;
};

// out [batch, num_samples, channels, positions].
template <typename T>
void smoothgrad_noise(const NoisyCopies<T>& args, T* out, const Run& run);

}  // namespace cortex_fast
