// What the Gumbel-Softmax kernels share: scores of four neighbouring codes, whose noise is one Philox block, and the
// split of a matrix into planes for the matrix units.
#pragma once

#include <limits>

#include "cortex_fast/gumbel_codebook_cuda.h"
#include "cortex_fast/philox.h"
#include "cortex_fast/transforms.h"
#include "tiles.cuh"

namespace cortex_fast {
namespace cuda {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr float kHighest = std::numeric_limits<float>::infinity();
constexpr double kLeastTau = std::numeric_limits<float>::min(), kMostTau = std::numeric_limits<float>::max();
constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 2147483647;  // of a launch, along x

// What every kernel knows of P and its noise.
struct Field {
  const float* logits;  // [count, codes]
  const float* gumbel;  // the same, or null
  const std::int64_t* item_ids;
  const double* schedule;  // or null
  std::int64_t count, rows, codes;
  int channels;
  float tau;
  Key key;
  std::uint32_t draw;
  bool vector;  // rows of float32 [count, codes] are aligned to 16 bytes
};

inline bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

inline Field field_of(const GumbelCodebook& args, const Launch& launch) {
  return {args.logits,
          args.gumbel,
          args.item_ids,
          launch.schedule,
          args.problems * args.rows,
          args.rows,
          args.codes,
          static_cast<int>(args.channels),
          args.tau,
          stream_key(args.seed, Stream::kGumbel),
          static_cast<std::uint32_t>(args.draw),
          args.codes % 4 == 0 && aligned(args.logits) && aligned(args.gumbel)};
}

// 1 / tau, of a temperature within the normal floats. The scan and the update multiply by the same number, so that the
// selected code's own weight is 1 in both.
__device__ __forceinline__ float inverse_tau(const Field& field) {
  const double tau = field.schedule == nullptr ? static_cast<double>(field.tau) : field.schedule[0];
  return static_cast<float>(1.0 / (tau < kLeastTau ? kLeastTau : tau > kMostTau ? kMostTau : tau));
}

__device__ __forceinline__ std::uint32_t draw_of(const Field& field) {
  return field.schedule == nullptr ? field.draw
                                   : static_cast<std::uint32_t>(static_cast<std::int64_t>(field.schedule[1]));
}

struct Quad {
  float of[4];
};

// Four floats of a row from `code` on, a multiple of 4; `filler` past the last. kOnce: they will not be read again
// soon, and are the first to leave the caches.
template <bool kOnce = false>
__device__ __forceinline__ Quad load_quad(const float* row, std::int64_t code, std::int64_t codes, bool vector,
                                          float filler) {
  Quad quad;
  if (vector) {
    float4 all = make_float4(filler, filler, filler, filler);
    const auto* at = reinterpret_cast<const float4*>(row + code);
    if (code < codes) all = kOnce ? __ldcs(at) : *at;
    quad.of[0] = all.x, quad.of[1] = all.y, quad.of[2] = all.z, quad.of[3] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.of[i] = code + i < codes ? row[code + i] : filler;
  }
  return quad;
}

template <bool kOnce = false>
__device__ __forceinline__ void store_quad(float* row, std::int64_t code, std::int64_t codes, bool vector,
                                           const Quad& quad) {
  if (vector) {
    if (code >= codes) return;
    const float4 all = make_float4(quad.of[0], quad.of[1], quad.of[2], quad.of[3]);
    auto* at = reinterpret_cast<float4*>(row + code);
    if (kOnce) {
      __stcs(at, all);
    } else {
      *at = all;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (code + i < codes) row[code + i] = quad.of[i];
    }
  }
}

// Four weights of a row to their place in a block, as parts.
__device__ __forceinline__ void store_parts(unsigned char* to, const Quad& weights) {
  const Parts first = split_pair(weights.of[0], weights.of[1]), second = split_pair(weights.of[2], weights.of[3]);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    *reinterpret_cast<uint2*>(to + plane * kPlane) = make_uint2(first.of[plane], second.of[plane]);
  }
}

// The random words of four codes of a row, which is row `place` of problem `item`.
__device__ __forceinline__ Counter<std::uint32_t> words_of(const Field& field, std::uint32_t draw, std::uint32_t item,
                                                           std::uint32_t place, std::int64_t code) {
  const Counter<std::uint32_t> counter{{static_cast<std::uint32_t>(code / 4), place, item, draw}};
  return philox4x32(counter, field.key);
}

// Four logits of row `row`; -inf past the last code.
template <bool kOnce = false>
__device__ __forceinline__ Quad logits_of(const Field& field, std::int64_t row, std::int64_t code) {
  return load_quad<kOnce>(field.logits + row * field.codes, code, field.codes, field.vector, kLowest);
}

// P + g of four codes, whose logits are given.
__device__ __forceinline__ Quad scores_of(const Field& field, std::uint32_t draw, std::uint32_t item,
                                          std::uint32_t place, std::int64_t row, std::int64_t code, Quad logits) {
  if (field.gumbel != nullptr) {
    const Quad noise = load_quad(field.gumbel + row * field.codes, code, field.codes, field.vector, 0.0f);
#pragma unroll
    for (int i = 0; i < 4; ++i) logits.of[i] += noise.of[i];
  } else {
    const Counter<std::uint32_t> words = words_of(field, draw, item, place, code);
#pragma unroll
    for (int i = 0; i < 4; ++i) logits.of[i] += gumbel_of(words.words[i]);
  }
  return logits;
}

// A score and its code: the larger score, and of equal ones the lower code.
struct Best {
  float score;
  int code;
};

__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  return b.score > a.score || (b.score == a.score && b.code < a.code) ? b : a;
}

// The best of `width` adjacent lanes; every lane receives it.
template <int width>
__device__ __forceinline__ Best best_of_lanes(Best best) {
#pragma unroll
  for (int lanes = 1; lanes < width; lanes *= 2) {
    best = better(
        best, Best{__shfl_xor_sync(0xFFFFFFFFu, best.score, lanes), __shfl_xor_sync(0xFFFFFFFFu, best.code, lanes)});
  }
  return best;
}

template <int width>
__device__ __forceinline__ float sum_of_lanes(float value) {
#pragma unroll
  for (int lanes = 1; lanes < width; lanes *= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
  return value;
}

// NaN is the largest score of all.
__device__ __forceinline__ float ranked(float score) { return score != score ? kHighest : score; }

// 64 rows by 256 channels of sums in registers, which the warps of a block share: each has 32 of the rows, and every
// fourth slice of 16 channels. Blocks go over the channels along one axis of the grid.
constexpr int kSumRows = 64, kSumChannels = 256, kSumSlices = kSumChannels / 16;

inline unsigned sum_columns(std::int64_t channels) {
  return channels == 0 ? 1u : static_cast<unsigned>(ceil_div(channels, kSumChannels));
}

struct Sums {
  int slices, column, here;             // of a row of blocks; those before this block's; this block's
  int rows_from, slice_from;            // this warp's
  float of[2][kSumSlices / 2][4] = {};  // 16 rows; 8 channels; as mma.sync has them

  __device__ __forceinline__ Sums(int channels, unsigned block) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    slices = (channels + 15) / 16;
    column = static_cast<int>(block) * kSumSlices;
    here = min(slices - column, kSumSlices);
    rows_from = warp % 2 * 32;
    slice_from = warp / 2;
  }

  // The products of 16 numbers of each of the rows and the blocks of a stage, by add(sum, product, 16 rows' number).
  template <int kProducts, typename Add>
  __device__ __forceinline__ void multiply_stage(const Left (&left)[2], const unsigned char* stage, const Add& add) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (slice_from + 4 * j >= here) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Right right = load_right_transposed(stage + (slice_from + 4 * j) * kBlock, half);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float product[4];
          multiply<kProducts>(left[m], right, product);
          add(of[m][2 * j + half], product, m);
        }
      }
    }
  }

  // to [.., channels], from the first of the block's rows on, of which `rows` exist.
  __device__ __forceinline__ void store(float* to, std::int64_t rows, int channels) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kSumSlices / 2; ++n) {
        const int channel = (column + slice_from + 4 * (n / 2)) * 16 + n % 2 * 8 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = rows_from + 16 * m + i / 2 * 8 + lane / 4;
          if (row < rows && channel + i % 2 < channels) {
            to[static_cast<std::int64_t>(row) * channels + channel + i % 2] = of[m][n][i];
          }
        }
      }
    }
  }
};

constexpr int kPadded = 16 * kPanel;  // rows of planes are made up to a multiple of it, with zeros

inline std::int64_t plane_rows(std::int64_t rows) { return ceil_div(rows, kPadded) * kPadded; }
inline std::int64_t slices_of(std::int64_t channels) { return ceil_div(channels, 16); }
inline std::int64_t plane_bytes(std::int64_t rows, std::int64_t channels) {
  return plane_rows(rows) / 16 * slices_of(channels) * kBlock;
}

// from [rows, channels] as blocks, zero beyond.
Status split(const float* from, std::int64_t rows, std::int64_t channels, unsigned char* to, void* stream);

// Scratch memory, handed out piece by piece; with a null base it only counts.
struct Pieces {
  unsigned char* base;
  std::size_t used = 0;

  template <typename T>
  T* take(std::int64_t count) {
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += static_cast<std::size_t>(ceil_div(count * static_cast<std::int64_t>(sizeof(T)), 256) * 256);
    return piece;
  }
};

}  // namespace cuda
}  // namespace cortex_fast
