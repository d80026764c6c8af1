// Bound: the selection. An image is read once (4 + sizeof(Token) bytes a position: 1.5 KB for m 16 and uint16) and its
// top n are found in O(m^2) comparisons; top_n integers are added to counts.
//
// A position becomes one 64-bit key, the TSV's order-preserving bits above the inverted position: keys are distinct,
// the larger key is the larger TSV, and a tie goes to the lower position. Partial selection then needs no stability.
// Only integers are added, atomically, so the order of the threads changes nothing.
#include "cortex_fast/concept_counts.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "cortex_fast/parallel.h"

namespace cortex_fast {
namespace {

using std::int64_t;
using std::uint32_t;
using std::uint64_t;

uint64_t key_of(float value, int64_t position) {
  value += 0.0f;  // -0 becomes +0: they tie
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(position));
}

int64_t position_of(uint64_t key) { return static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(key)); }

void add_one(int64_t* count) {
#ifdef _OPENMP
#pragma omp atomic
#endif
  *count += 1;
}

}  // namespace

template <typename Token>
bool concept_counts(const Grids<float>& tsv, const Grids<Token>& tokens, const int64_t* labels, const CountSizes& sizes,
                    Per per, int64_t* counts, int threads) {
  const int64_t positions = sizes.height * sizes.width;
  const int ranges = range_count(sizes.batch, threads);
  std::vector<uint64_t> all_keys(static_cast<std::size_t>(ranges * positions));
  std::vector<int64_t> all_chosen(static_cast<std::size_t>(ranges * sizes.top_n));
  std::vector<char> sound(static_cast<std::size_t>(ranges), 1);

  parallel_ranges(sizes.batch, threads, [&](int range, int64_t begin, int64_t end) {
    uint64_t* keys = all_keys.data() + range * positions;
    int64_t* chosen = all_chosen.data() + range * sizes.top_n;
    for (int64_t image = begin; image < end; ++image) {
      for (int64_t y = 0; y < sizes.height; ++y) {
        const float* row = tsv.data + image * tsv.strides[0] + y * tsv.strides[1];
        for (int64_t x = 0; x < sizes.width; ++x) {
          keys[y * sizes.width + x] = key_of(row[x * tsv.strides[2]], y * sizes.width + x);
        }
      }
      if (sizes.top_n < positions) {
        std::nth_element(keys, keys + sizes.top_n - 1, keys + positions, std::greater<uint64_t>());
      }
      for (int64_t i = 0; i < sizes.top_n; ++i) {
        const int64_t position = position_of(keys[i]);
        chosen[i] =
            static_cast<int64_t>(tokens.data[image * tokens.strides[0] + position / sizes.width * tokens.strides[1] +
                                             position % sizes.width * tokens.strides[2]]);
      }
      int64_t* stop = chosen + sizes.top_n;
      if (per == Per::kImage) {
        std::sort(chosen, stop);
        stop = std::unique(chosen, stop);
      }
      const int64_t label = labels[image];
      const bool in_range =
          label >= 0 && label < sizes.num_concepts &&
          std::all_of(chosen, stop, [&sizes](int64_t token) { return token >= 0 && token < sizes.codebook_size; });
      if (!in_range) {
        sound[static_cast<std::size_t>(range)] = 0;
        return;
      }
      for (const int64_t* token = chosen; token != stop; ++token) {
        add_one(counts + label * sizes.codebook_size + *token);
      }
    }
  });
  return std::all_of(sound.begin(), sound.end(), [](char ok) { return ok != 0; });
}

#define CORTEX_FAST_TOKENS(Token)                                                                                  \
  template bool concept_counts<Token>(const Grids<float>&, const Grids<Token>&, const int64_t*, const CountSizes&, \
                                      Per, int64_t*, int)
CORTEX_FAST_TOKENS(std::uint8_t);
CORTEX_FAST_TOKENS(std::int16_t);
CORTEX_FAST_TOKENS(std::uint16_t);
CORTEX_FAST_TOKENS(std::int32_t);
CORTEX_FAST_TOKENS(std::int64_t);
#undef CORTEX_FAST_TOKENS

}  // namespace cortex_fast
