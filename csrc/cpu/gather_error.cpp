// Bound: memory. An embedding and as many bytes of codebook rows are read once for one subtraction: 512 KB an image of
// 256 channels and 256 positions, of which an embedding that was just read lies in the second cache and a codebook of
// 16,384 codes in the last. 4 bytes are written.
//
// An embedding runs along positions, a codebook row along channels: squares of a row's vectors are transposed in
// registers. Sixteen positions, a cache line of the embedding, go through all channels, while the rows of the next
// sixteen are prefetched. Magnitudes are compared as integers, which sort in the same order and put NaN above infinity,
// so the result does not depend on the order of the comparisons.
#include "cortex_fast/gather_error.h"

#include <algorithm>

#include "cortex_fast/parallel.h"
#include "pack.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kGroup = 16;  // positions
constexpr int64_t kLine = 16;   // floats
static_assert(kGroup % kFloats == 0 && kLine % kFloats == 0);

uint32_t magnitude_bits(float value) { return bits_of(value) & 0x7FFFFFFFu; }

// kFloats channels of kGroup positions. rows: those of the codebook, from the first of these channels on.
CORTEX_FAST_INLINE IntVector most_of_square(const float* embedding, int64_t positions, const float* const* rows,
                                            int64_t channel, IntVector most) {
#pragma GCC unroll 4
  for (int64_t first = 0; first < kGroup; first += kFloats) {
    FloatVector square[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) square[i] = *reinterpret_cast<const FloatMemory*>(rows[first + i] + channel);
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) {
      const FloatVector values = *reinterpret_cast<const FloatMemory*>(embedding + i * positions + first);
      const IntVector bits = (IntVector)(values - square[i]) & 0x7FFFFFFF;
      most = bits > most ? bits : most;
    }
  }
  return most;
}

uint32_t most_of_rest(const float* embedding, const float* row, int64_t positions, int64_t begin, int64_t end,
                      uint32_t most) {
  for (int64_t k = begin; k < end; ++k) most = std::max(most, magnitude_bits(embedding[k * positions] - row[k]));
  return most;
}

float error_of(const GatherError& args, int64_t image) {
  const float* embedding = args.embedding + image * args.channels * args.positions;
  const int32_t* tokens = args.tokens + image * args.positions;
  const auto row_at = [&](int64_t position) { return args.codebook + tokens[position] * args.channels; };
  const int64_t squares = args.channels - args.channels % kFloats, groups = args.positions - args.positions % kGroup;
  IntVector most{};
  uint32_t rest = 0;
  for (int64_t first = 0; first < groups; first += kGroup) {
    const float *rows[kGroup], *next[kGroup];
    for (int64_t i = 0; i < kGroup; ++i) {
      rows[i] = row_at(first + i);
      next[i] = row_at(std::min(first + kGroup + i, args.positions - 1));
    }
    for (int64_t channel = 0; channel < squares; channel += kFloats) {
      if (channel % kLine == 0) {
        for (int64_t i = 0; i < kGroup; ++i) __builtin_prefetch(next[i] + channel);
      }
      most = most_of_square(embedding + channel * args.positions + first, args.positions, rows, channel, most);
    }
    for (int64_t i = 0; i < kGroup; ++i) {
      rest = most_of_rest(embedding + first + i, rows[i], args.positions, squares, args.channels, rest);
    }
  }
  for (int64_t position = groups; position < args.positions; ++position) {
    rest = most_of_rest(embedding + position, row_at(position), args.positions, 0, args.channels, rest);
  }
  for (int i = 0; i < kFloats; ++i) rest = std::max(rest, static_cast<uint32_t>(most[i]));
  return float_of(rest);
}

}  // namespace

void gather_error(const GatherError& args, float* error, const Run& run) {
  parallel_tasks(args.images, run.threads, [&](int64_t image) { error[image] = error_of(args, image); });
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
