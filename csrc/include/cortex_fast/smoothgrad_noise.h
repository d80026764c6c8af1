// N noisy copies of each embedding: x + sigma e, e from the shared stream.
#pragma once

#include <cstdint>

#include "cortex_fast/half.h"
#include "cortex_fast/run.h"

namespace cortex_fast {

// T: float, BFloat16 or Float16. Arrays are contiguous.
//
// Images that have an item in common share its noise: `order` [batch] lists the images item by item; group g has those
// from group_starts[g] to group_starts[g + 1], and item group_items[g].
template <typename T>
struct NoisyCopies {
  const T* x;          // [batch, channels, positions]
  const float* sigma;  // [batch]
  const float* noise;  // [batch, samples, channels, positions], or null: drawn
  const std::int64_t* order;
  const std::int64_t* group_starts;  // [groups + 1]
  const std::int64_t* group_items;   // [groups], in [0, 2^32)
  std::int64_t batch, groups, samples, channels, positions;
  std::int64_t first_sample;  // the number of the first of the samples; even where antithetic
  std::uint64_t seed;
  bool antithetic;  // samples 2 j and 2 j + 1 are x +- sigma e of draw j
};

// out [batch, samples, channels, positions].
template <typename T>
void smoothgrad_noise(const NoisyCopies<T>& args, T* out, const Run& run);

}  // namespace cortex_fast
