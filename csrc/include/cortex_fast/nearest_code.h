// The nearest codebook row by Euclidean distance: vector quantisation.
#pragma once

#include <cstdint>

#include "cortex_fast/run.h"

namespace cortex_fast {

// All contiguous: z [rows, channels], codebook [codes, channels], codes >= 1.
struct NearestCode {
  const float* z;
  const float* codebook;
  std::int64_t rows, codes, channels;
};

// index [rows], by distances in double; among equal ones the lowest. A code that is not finite is nearest to nothing;
// the index is 0 where z is not finite, or no code is.
void nearest_code(const NearestCode& args, std::int64_t* index, const Run& run);

}  // namespace cortex_fast
