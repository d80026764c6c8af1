// The functions of csrc/cpu/words.h, called by test_words.py.
#include "words.h"

#include <vector>

using namespace cortex_fast;
using namespace cortex_fast::CORTEX_FAST_LEVEL;

// Words of indices 4 first_quad, 4 first_quad + 1, ... of one row: out [count].
extern "C" void along_row(uint64_t seed, uint64_t stream, uint64_t first_quad, uint32_t row, uint32_t item,
                          uint32_t draw, int64_t count, uint32_t* out) {
  std::vector<uint32_t> words(static_cast<std::size_t>(count + kWordBlock));
  words_along_row(stream_key(seed, static_cast<Stream>(stream)), first_quad, row, item, draw, count, words.data());
  for (int64_t i = 0; i < count; ++i) out[i] = words[static_cast<std::size_t>(i)];
}

// Words of one quad in rows first_row, first_row + 1, ...: out [4, count].
extern "C" void across_rows(uint64_t seed, uint64_t stream, uint32_t quad, uint64_t first_row, uint32_t item,
                            uint32_t draw, int64_t count, uint32_t* out) {
  const int64_t room = count + kLanes;
  std::vector<uint32_t> words(static_cast<std::size_t>(4 * room));
  uint32_t* const rows[4] = {words.data(), words.data() + room, words.data() + 2 * room, words.data() + 3 * room};
  words_across_rows(stream_key(seed, static_cast<Stream>(stream)), quad, first_row, item, draw, count, rows);
  for (int64_t word = 0; word < 4; ++word) {
    for (int64_t i = 0; i < count; ++i) out[word * count + i] = rows[word][i];
  }
}
