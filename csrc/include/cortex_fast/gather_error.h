// How far embeddings are from the codebook gathered at their tokens.
#pragma once

#include <cstdint>

#include "cortex_fast/run.h"

namespace cortex_fast {

// All contiguous: embedding [images, channels, positions], tokens [images, positions] within [0, codes), codebook
// [codes, channels].
struct GatherError {
  const float* embedding;
  const std::int32_t* tokens;
  const float* codebook;
  std::int64_t images, channels, positions;
};

// error [images]: the largest |embedding - codebook[token]| of each, exactly the float difference; NaN if any is NaN, 0
// of no elements.
void gather_error(const GatherError& args, float* error, const Run& run);

}  // namespace cortex_fast
