// The shared random stream, written out.
#pragma once

#include <cstdint>

#include "cortex_fast/philox.h"
#include "cortex_fast/run.h"

namespace cortex_fast {

// out [items, draws, rows, length], contiguous.
struct StreamSizes {
  std::int64_t items, draws, rows, length;
};

// kNormal gives standard normals, the other streams Gumbel(0, 1). items and draws hold values in [0, 2^32).
void random_stream(Stream stream, std::uint64_t seed, const std::int64_t* items, const std::int64_t* draws,
                   const StreamSizes& sizes, float* out, const Run& run);

}  // namespace cortex_fast
