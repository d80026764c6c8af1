// Bound: arithmetic, ten rounds of Philox for four numbers and their transforms; four bytes a number are written.
#include "cortex_fast/random_stream.h"

#include <algorithm>

#include "cortex_fast/parallel.h"
#include "cortex_fast/transforms.h"
#include "words.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kChunk = 1024;  // numbers of one task
static_assert(kChunk % kWordBlock == 0 && kWordBlock % kPack == 0);

void transform(Stream stream, const uint32_t* words, int64_t count, float* out) {
  alignas(64) float numbers[kChunk];
  if (stream == Stream::kNormal) {
    for (int64_t i = 0; i < count; i += 2) {
      const auto pair = normals_of(words[i], words[i + 1]);
      numbers[i] = pair.first;
      numbers[i + 1] = pair.second;
    }
  } else {
    for (int64_t i = 0; i < count; i += kPack) store_floats(gumbel_of<Floats>(load_words(words + i)), numbers + i);
  }
  std::copy_n(numbers, count, out);
}

}  // namespace

void random_stream(Stream stream, uint64_t seed, const int64_t* items, const int64_t* draws, const StreamSizes& sizes,
                   float* out, const Run& run) {
  const Key key = stream_key(seed, stream);
  const int64_t all_rows = sizes.items * sizes.draws * sizes.rows;
  const int64_t chunks = (sizes.length + kChunk - 1) / kChunk;
  parallel_tasks(all_rows * chunks, run.threads, [&](int64_t task) {
    const int64_t at = task / chunks, first = task % chunks * kChunk, count = std::min(kChunk, sizes.length - first);
    alignas(64) uint32_t words[kChunk];
    const int64_t row = at % sizes.rows, draw = at / sizes.rows % sizes.draws, item = at / sizes.rows / sizes.draws;
    words_along_row(key, static_cast<uint64_t>(first / 4), static_cast<uint32_t>(row),
                    static_cast<uint32_t>(items[item]), static_cast<uint32_t>(draws[draw]), count, words);
    transform(stream, words, count, out + at * sizes.length + first);
  });
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
