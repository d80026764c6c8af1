// Blocks of the random stream's words, along a row or across rows, kLanes counters at a time.
#pragma once

#include "pack.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {

// A block is rounded up to a multiple of this: buffers must have room for it.
constexpr int64_t kWordBlock = 4 * kLanes;

CORTEX_FAST_INLINE Wide broadcast(uint64_t value) { return {{WideVector{} + value, WideVector{} + value}}; }

// first + 0, step, 2 step, ... in the first vector, and from second_first in the second.
CORTEX_FAST_INLINE Wide counting(uint64_t first, uint64_t second_first, uint64_t step) {
  Wide w;
  for (int i = 0; i < kLanes / 2; ++i) {
    w.v[0][i] = first + step * static_cast<uint64_t>(i);
    w.v[1][i] = second_first + step * static_cast<uint64_t>(i);
  }
  return w;
}

// One vector's words into the lower halves, another's into the upper.
CORTEX_FAST_INLINE WideVector both_halves(WideVector low, WideVector high) {
  return (low & 0xFFFFFFFFu) | (high << 32);
}

// The words of indices 4 first_quad, 4 first_quad + 1, ... of one row: `count` of them, rounded up to kWordBlock.
static inline void words_along_row(Key key, uint64_t first_quad, uint32_t row, uint32_t item, uint32_t draw,
                                   int64_t count, uint32_t* out) {
  const Wide rows = broadcast(row), items = broadcast(item), draws = broadcast(draw);
  const Wide steps = counting(first_quad, first_quad + kLanes / 2, 1);
  for (int64_t done = 0; done < count; done += kWordBlock) {
    const auto quads = static_cast<uint64_t>(done / 4);
    const Counter<Wide> words =
        philox4x32(Counter<Wide>{{{{steps.v[0] + quads, steps.v[1] + quads}}, rows, items, draws}}, key);
    for (int vector = 0; vector < 2; ++vector) {
      const WideVector front = both_halves(words.words[0].v[vector], words.words[1].v[vector]);
      const WideVector back = both_halves(words.words[2].v[vector], words.words[3].v[vector]);
      uint32_t* to = out + done + vector * 2 * kLanes;
      *reinterpret_cast<WordMemory*>(to) = (WordVector)interleave_low(front, back);
      *reinterpret_cast<WordMemory*>(to + kLanes) = (WordVector)interleave_high(front, back);
    }
  }
}

// The four words of one quad in rows first_row, first_row + 1, ...: out[j][i] is word j of row first_row + i, for
// `count` rows, rounded up to kLanes.
static inline void words_across_rows(Key key, uint32_t quad, uint64_t first_row, uint32_t item, uint32_t draw,
                                     int64_t count, uint32_t* const out[4]) {
  const Wide quads = broadcast(quad), items = broadcast(item), draws = broadcast(draw);
  const Wide steps = counting(first_row, first_row + 1, 2);
  for (int64_t done = 0; done < count; done += kLanes) {
    const auto rows = static_cast<uint64_t>(done);
    const Counter<Wide> words =
        philox4x32(Counter<Wide>{{quads, {{steps.v[0] + rows, steps.v[1] + rows}}, items, draws}}, key);
    for (int j = 0; j < 4; ++j) {
      const WideVector both = both_halves(words.words[j].v[0], words.words[j].v[1]);
      *reinterpret_cast<WordMemory*>(out[j] + done) = (WordVector)both;
    }
  }
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
