// The random stream that every backend shares: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2,
// 3", SC 2011). key = output number `stream` (from 1) of splitmix64 started at the seed, low word first;
// counter = (index within the row / 4, row, item, draw); its four words belong to the four consecutive indices.
//
// Word is std::uint32_t, or a type of many words that has ^ and a function product(word, multiplier, high, low).
#pragma once

#include "cortex_fast/portable.h"

namespace cortex_fast {

enum class Stream : std::uint64_t { kNormal = 1, kGumbel = 2, kSampling = 3 };

struct Key {
  std::uint32_t low, high;
};

CORTEX_FAST_INLINE Key stream_key(std::uint64_t seed, Stream stream) {
  std::uint64_t mixed = seed + static_cast<std::uint64_t>(stream) * 0x9E3779B97F4A7C15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
  mixed ^= mixed >> 31;
  return {static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32)};
}

CORTEX_FAST_INLINE void product(std::uint32_t word, std::uint32_t multiplier, std::uint32_t& high, std::uint32_t& low) {
  const std::uint64_t both = static_cast<std::uint64_t>(word) * multiplier;
  high = static_cast<std::uint32_t>(both >> 32);
  low = static_cast<std::uint32_t>(both);
}

template <typename Word>
struct Counter {
  Word words[4];
};

template <typename Word>
CORTEX_FAST_INLINE Counter<Word> philox4x32(const Counter<Word>& counter, Key key) {
  Word a = counter.words[0], b = counter.words[1], c = counter.words[2], d = counter.words[3];
  for (int round = 0; round < 10; ++round) {
    Word high_a, low_a, high_c, low_c;
    product(a, 0xD2511F53u, high_a, low_a);
    product(c, 0xCD9E8D57u, high_c, low_c);
    a = high_c ^ b ^ key.low;
    b = low_c;
    c = high_a ^ d ^ key.high;
    d = low_a;
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

}  // namespace cortex_fast
