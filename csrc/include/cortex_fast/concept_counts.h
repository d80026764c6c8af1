// Counts of each concept's top tokens.
#pragma once

#include <cstdint>

namespace cortex_fast {

enum class Per { kOccurrence, kImage };

// A tensor [batch, height, width]; strides in elements.
template <typename T>
struct Grids {
  const T* data;
  std::int64_t strides[3];
};

struct CountSizes {
  std::int64_t batch, height, width;
  std::int64_t top_n;  // 1 to height * width
  std::int64_t num_concepts, codebook_size;
};

// Adds to counts [num_concepts, codebook_size], contiguous, which the caller has zeroed. labels [batch], contiguous.
// Counts are specified for a tsv without NaN; a NaN does no other harm. Returns false, and leaves counts unspecified,
// if a token or a label is out of range. Every number of threads gives the same counts. Throws nothing but
// std::bad_alloc. Token: uint8, int16, uint16, int32, int64.
template <typename Token>
bool concept_counts(const Grids<float>& tsv, const Grids<Token>& tokens, const std::int64_t* labels,
                    const CountSizes& sizes, Per per, std::int64_t* counts, int threads);

}  // namespace cortex_fast
