// Chunks of softmax((logits + g) / tau) over a block of rows, unnormalised: each chunk has a reference of its own, so
// that chunks are computed in any order by any thread, and `normalise` then gives each its factor.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cortex_fast/gumbel_codebook.h"
#include "cortex_fast/parallel.h"
#include "cortex_fast/transforms.h"
#include "words.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {

constexpr int64_t kChunk = 768;    // codes of one task; a multiple of the product's tile and of kWordBlock
constexpr int64_t kRowBlock = 32;  // rows whose weights are held at once: 128 bytes a code
static_assert(kChunk % kWordBlock == 0 && kChunk % kPack == 0);

CORTEX_FAST_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One row of a problem, and where its noise comes from.
struct Row {
  const float* logits;
  const float* gumbel;  // or null
  uint32_t number, item;
};

CORTEX_FAST_INLINE Row row_of(const GumbelCodebook& args, int64_t row) {
  const float* gumbel = args.gumbel == nullptr ? nullptr : args.gumbel + row * args.codes;
  return {args.logits + row * args.codes, gumbel, static_cast<uint32_t>(row % args.rows),
          static_cast<uint32_t>(args.item_ids[row / args.rows])};
}

// What a chunk of one row adds up to: weight = exp((s - reference) / tau).
struct Share {
  float reference;
  double weight;  // sum of the weights
  double dot;     // sum of weight times D
  double factor;  // normalise() sets it: y = factor * weight
};

// The largest of `count` logits from memory that ends there; NaN is passed over.
static inline float largest(const float* values, int64_t count) {
  Floats best(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kPack <= count; i += kPack) best = larger(best, load_floats(values + i));
  float rest[kPack];
  store_floats(best, rest);
  for (; i < count; ++i) rest[0] = values[i] > rest[0] ? values[i] : rest[0];
  float most = rest[0];
  for (int64_t lane = 1; lane < kPack; ++lane) most = rest[lane] > most ? rest[lane] : most;
  return most;
}

// A pack of `from`, filled past `count`.
CORTEX_FAST_INLINE Floats load_padded(const float* from, int64_t count, float filler) {
  if (count >= kPack) return load_floats(from);
  float padded[kPack];
  for (int64_t i = 0; i < kPack; ++i) padded[i] = i < count ? from[i] : filler;
  return load_floats(padded);
}

// The words of codes [first, first + count) of one row; first is a multiple of 4.
static inline void words_of(const GumbelCodebook& args, const Row& row, int64_t first, int64_t count, Key key,
                            uint32_t* words) {
  words_along_row(key, static_cast<uint64_t>(first / 4), row.number, row.item, static_cast<uint32_t>(args.draw), count,
                  words);
}

// Weights of codes [first, first + count) of one row into `weights`, 0 past them in the last pack; returns the
// reference. At tau = 1 the noise costs one logarithm less: exp(P + g) = exp(P) / -log(1 - u), with the largest P as
// the reference.
static inline float soften_chunk(const GumbelCodebook& args, const Row& row, int64_t first, int64_t count, Key key,
                                 float* weights) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const bool drawn = row.gumbel == nullptr;
  const bool without_gumbel = drawn && args.tau == 1.0f && args.codes > 1;  // one code: its y is 1, not rounded to it
  alignas(64) uint32_t words[kChunk];
  if (drawn) words_of(args, row, first, count, key, words);
  const float* logits = row.logits + first;
  if (!without_gumbel) {
    for (int64_t i = 0; i < count; i += kPack) {
      const Floats noise =
          drawn ? gumbel_of<Floats>(load_words(words + i)) : load_padded(row.gumbel + first + i, count - i, 0.0f);
      store_floats(load_padded(logits + i, count - i, kLowest) + noise, weights + i);
    }
    logits = weights;  // the scores, from here on
  }
  const float reference = largest(logits, count);
  const Floats base(reference == kLowest ? 0.0f : reference), tau(args.tau);
  for (int64_t i = 0; i < count; i += kPack) {
    const Floats above = load_padded(logits + i, count - i, kLowest) - base;
    const Floats weight = without_gumbel
                              ? exp_of(above) / minus_log_of_complement(uniform_of<Floats>(load_words(words + i)))
                              : exp_of(above / tau);
    store_floats(weight, weights + i);
  }
  return reference;
}

static inline double sum_of_lanes(const Floats& pack) {
  float lanes[kPack];
  store_floats(pack, lanes);
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

// The factors of one row's chunks, shares[0], shares[stride], ...; returns <y, D>.
static inline double normalise(Share* shares, int64_t chunks, int64_t stride, float tau) {
  double reference = -std::numeric_limits<double>::infinity();
  for (int64_t c = 0; c < chunks; ++c) {
    const double candidate = static_cast<double>(shares[c * stride].reference);
    if (candidate > reference) reference = candidate;
  }
  double weight = 0, dot = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    Share& share = shares[c * stride];
    share.factor = std::exp((static_cast<double>(share.reference) - reference) / static_cast<double>(tau));
    weight += share.factor * share.weight;
    dot += share.factor * share.dot;
  }
  for (int64_t c = 0; c < chunks; ++c) shares[c * stride].factor /= weight;
  return dot / weight;
}

// y of `rows` rows from `start`: weights [chunk][kRowBlock][kChunk]; shares [chunk][kRowBlock] is scratch.
static inline void soften_rows(const GumbelCodebook& args, int64_t start, int64_t rows, Key key, float* weights,
                               Share* shares, const Run& run) {
  const int64_t chunks = ceil_div(args.codes, kChunk);
  parallel_tasks(chunks * rows, run.threads, [&](int64_t task) {
    const int64_t chunk = task / rows, r = task % rows, first = chunk * kChunk;
    const int64_t count = std::min(kChunk, args.codes - first);
    float* cell = weights + (chunk * kRowBlock + r) * kChunk;
    Share& share = shares[chunk * kRowBlock + r];
    share.reference = soften_chunk(args, row_of(args, start + r), first, count, key, cell);
    Floats sum(0.0f);
    for (int64_t i = 0; i < count; i += kPack) sum = sum + load_floats(cell + i);
    share.weight = sum_of_lanes(sum);
    share.dot = 0;
  });
  for (int64_t r = 0; r < rows; ++r) normalise(shares + r, chunks, kRowBlock, args.tau);
  parallel_tasks(chunks * rows, run.threads, [&](int64_t task) {
    const int64_t chunk = task / rows, r = task % rows;
    const int64_t count = std::min(kChunk, args.codes - chunk * kChunk);
    float* cell = weights + (chunk * kRowBlock + r) * kChunk;
    const float factor = static_cast<float>(shares[chunk * kRowBlock + r].factor);
    for (int64_t i = 0; i < count; ++i) cell[i] *= factor;
  });
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
