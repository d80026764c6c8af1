// Hard forward. Bound: the random words, ten rounds of Philox for four codes; 4 bytes of logits a code are read, and
// the embedding is a gather: no one-hot, no product. Only few codes need their Gumbel: the transform falls as the word
// grows, so that a block's smallest word and largest logit bound its scores, and a block that cannot win is passed
// over.
//
// Soft forward. Bound: the product y C, 2 R K d operations. y of a block of rows stays in cache.
#include "cortex_fast/gumbel_codebook.h"

#include <algorithm>
#include <memory>

#include "cortex_fast/parallel.h"
#include "product.h"
#include "soften.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kSegment = 6 * kChunk;  // codes of one task of the hard forward, where rows are few
constexpr int64_t kBlock = 256;           // codes that share a bound
static_assert(kChunk % kBlock == 0 && kBlock % kPack == 0);
constexpr float kSlack = 1e-5f;  // of a bound: far more than the transforms' rounding
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Best {
  float score = kLowest;
  int64_t index = -1;  // none: every score so far is -inf
  bool nan = false;
};

// Scores of codes [first, first + count), none NaN, against the best so far: a later one wins only if it is larger.
void compete(const float* scores, int64_t first, int64_t count, Best& best) {
  const float most = largest(scores, count);
  if (!(most > best.score)) return;
  int64_t i = 0;
  while (scores[i] != most) ++i;
  best = {most, first + i, false};
}

bool first_nan(const float* scores, int64_t first, int64_t count, Best& best) {
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] != scores[i]) {
      best = {scores[i], first + i, true};
      return true;
    }
  }
  return false;
}

bool any_nan(const float* values, int64_t count) {
  int32_t unordered = 0;
  for (int64_t i = 0; i < count; ++i) unordered |= values[i] != values[i] ? 1 : 0;
  return unordered != 0;
}

// The best of a segment with given noise.
Best best_given(const Row& row, int64_t begin, int64_t end) {
  Best best;
  for (int64_t first = begin; first < end; first += kChunk) {
    const int64_t count = std::min(kChunk, end - first);
    float scores[kChunk];
    for (int64_t i = 0; i < count; ++i) scores[i] = row.logits[first + i] + row.gumbel[first + i];
    if (any_nan(scores, count) && first_nan(scores, first, count, best)) return best;
    compete(scores, first, count, best);
  }
  return best;
}

// More than any score of a block. Lane by lane the smallest word and the largest logit bound the lane's scores.
float bound_of(const float* logits, const uint32_t* words, int64_t count, bool& nan) {
  Floats most(kLowest), unordered(0.0f);
  Words least(0xFFFFFFFFu);
  for (int64_t i = 0; i < count; i += kPack) {
    const Floats pack = load_padded(logits + i, count - i, kLowest);
    most = larger(most, pack);
    unordered = where_nan(pack, pack, unordered);
    least = smaller(least, load_words(words + i));  // a whole pack of them, beyond count too: the bound only grows
  }
  const Floats noise = gumbel_of<Floats>(least);
  float sums[kPack], flags[kPack];
  store_floats(most + noise, sums);
  store_floats(unordered, flags);
  float bound = kLowest;
  for (int64_t lane = 0; lane < kPack; ++lane) {
    bound = std::max(bound, sums[lane]);
    nan = nan || flags[lane] != flags[lane];
  }
  return bound + kSlack * (32.0f + std::fabs(bound));  // no Gumbel is beyond 23
}

// The best of a segment with noise from the stream.
Best best_drawn(const GumbelCodebook& args, const Row& row, int64_t begin, int64_t end, Key key) {
  Best best;
  for (int64_t first = begin; first < end; first += kChunk) {
    const int64_t count = std::min(kChunk, end - first);
    alignas(64) uint32_t words[kChunk];
    words_of(args, row, first, count, key, words);
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t size = std::min(kBlock, count - start);
      const float* logits = row.logits + first + start;
      bool nan = false;
      const float bound = bound_of(logits, words + start, size, nan);
      if (nan && first_nan(logits, first + start, size, best)) return best;
      if (!(bound > best.score)) continue;
      float scores[kBlock];
      for (int64_t i = 0; i < size; i += kPack) {
        store_floats(load_padded(logits + i, size - i, kLowest) + gumbel_of<Floats>(load_words(words + start + i)),
                     scores + i);
      }
      compete(scores, first + start, size, best);
    }
  }
  return best;
}

void select(const GumbelCodebook& args, int64_t* index, const Run& run) {
  const Key key = stream_key(args.seed, Stream::kGumbel);
  const int64_t rows = args.problems * args.rows;
  // a block is passed over for what came before it in its segment, so segments are as long as the threads allow
  const int64_t segment = rows >= 4 * run.threads ? args.codes : kSegment;
  const int64_t segments = ceil_div(args.codes, segment);
  const std::unique_ptr<Best[]> best(new Best[static_cast<std::size_t>(rows * segments)]);
  parallel_tasks(rows * segments, run.threads, [&](int64_t task) {
    const Row row = row_of(args, task / segments);
    const int64_t begin = task % segments * segment;
    const int64_t end = std::min(args.codes, begin + segment);
    best[static_cast<std::size_t>(task)] =
        row.gumbel == nullptr ? best_drawn(args, row, begin, end, key) : best_given(row, begin, end);
  });
  for (int64_t row = 0; row < rows; ++row) {
    const Best* of_row = best.get() + row * segments;
    Best winner;
    for (int64_t s = 0; s < segments && !winner.nan; ++s) {
      if (of_row[s].nan || of_row[s].score > winner.score) winner = of_row[s];
    }
    index[row] = std::max<int64_t>(winner.index, 0);
  }
}

void soft_embedding(const GumbelCodebook& args, float* embedding, const Run& run) {
  const Key key = stream_key(args.seed, Stream::kGumbel);
  const int64_t chunks = ceil_div(args.codes, kChunk);
  const int64_t panels = ceil_div(args.channels, kPanel);
  const int64_t all_rows = args.problems * args.rows;
  const std::unique_ptr<float[]> weights(new float[static_cast<std::size_t>(chunks * kRowBlock * kChunk)]);
  const std::unique_ptr<Share[]> shares(new Share[static_cast<std::size_t>(chunks * kRowBlock)]);
  for (int64_t start = 0; start < all_rows; start += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, all_rows - start);
    soften_rows(args, start, rows, key, weights.get(), shares.get(), run);
    parallel_tasks(panels, run.threads, [&](int64_t panel) {
      alignas(64) float right[kChunk * kPanel];
      float out[kRowBlock * kPanel] = {}, part[kRowBlock * kPanel];
      const int64_t column = panel * kPanel;
      const int64_t width = std::min(kPanel, args.channels - column);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t first = chunk * kChunk;
        const int64_t count = std::min(kChunk, args.codes - first);
        for (int64_t i = 0; i < count; ++i) {
          const float* from = args.codebook + (first + i) * args.channels + column;
          for (int64_t j = 0; j < kPanel; ++j) right[i * kPanel + j] = j < width ? from[j] : 0.0f;
        }
        // each chunk's sum apart: one sum over all codes would be rounded once for each of them
        panel_product({weights.get() + chunk * kRowBlock * kChunk, kChunk, 1}, rows, count, right, false, part);
        for (int64_t i = 0; i < rows * kPanel; ++i) out[i] += part[i];
      }
      for (int64_t r = 0; r < rows; ++r) {
        float* to = embedding + (start + r) * args.channels + column;
        for (int64_t j = 0; j < width; ++j) to[j] = out[r * kPanel + j];
      }
    });
  }
}

}  // namespace

void gumbel_codebook(const GumbelCodebook& args, float* embedding, int64_t* index, const Run& run) {
  select(args, index, run);
  if (!args.hard) return soft_embedding(args, embedding, run);
  parallel_tasks(args.problems * args.rows, run.threads, [&](int64_t row) {
    std::copy_n(args.codebook + index[row] * args.channels, args.channels, embedding + row * args.channels);
  });
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
