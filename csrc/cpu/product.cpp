// Bound: arithmetic. A step over the depth takes kRows broadcasts and kVectors loads for kRows kVectors multiply-adds;
// the panel (kPanel floats a step) stays in the first cache. A left-hand side read in place is streamed, kRows rows at
// a time, which no hardware prefetcher follows well: the next tile's lines are asked for while this one is multiplied
// (measured on AVX2: 50 to 58 GFLOP/s a core without, 69 to 86 with; torch's own product of the same 32 rows reached
// 31). Rows at strides of lines also meet in the same banks and sets of the first cache: packed, so that a step's kRows
// factors stand side by side, the same tile runs at 95 to 99 of the core's 99 GFLOP/s. Packing is worth it where a row
// meets many panels.
//
// Compiled with contraction of a b + c (CMakeLists.txt): the accumulators stay in registers and each step is one fused
// multiply-add where the level has it. Each sum has its own accumulator, in the order of the depth, so that tiling
// never shows in a result; what it is added to comes last, so that a depth cut into parts loses less to rounding.
#include "product.h"

#include <cstring>

#include "cortex_fast/portable.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

using std::int32_t;

#if defined(__AVX512F__)
constexpr int kFloats = 16;
#elif defined(__AVX2__)
constexpr int kFloats = 8;
#else
constexpr int kFloats = 4;
#endif
constexpr int kVectors = kPanel / kFloats;
constexpr int64_t kLine = 16;  // floats of a cache line

typedef float Vector __attribute__((vector_size(4 * kFloats)));
typedef float Unaligned __attribute__((vector_size(4 * kFloats), aligned(4), may_alias));

typedef float Four __attribute__((vector_size(16)));
typedef float FourUnaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t FourIndices __attribute__((vector_size(16)));
#ifdef __clang__
#define CORTEX_FAST_SHUFFLE4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CORTEX_FAST_SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, FourIndices{__VA_ARGS__})
#endif

template <int64_t kCount>
struct Sums {
  Vector v[kCount][kVectors] = {};

  // A step over the depth: the sums of row i get factors[i * stride] times the panel's row.
  CORTEX_FAST_MEMBER void add(const float* factors, int64_t stride, const float* panel_row) {
    Vector right[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) right[j] = *reinterpret_cast<const Unaligned*>(panel_row + j * kFloats);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      const float factor = factors[i * stride];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) v[i][j] += factor * right[j];
    }
  }

  CORTEX_FAST_MEMBER void write(bool add_to, float* out) const {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        Unaligned* to = reinterpret_cast<Unaligned*>(out + i * kPanel + j * kFloats);
        *to = add_to ? *to + v[i][j] : v[i][j];
      }
    }
  }
};

template <int64_t kCount>
void tile(const Left& left, int64_t depth, const float* panel, bool add, float* out) {
  Sums<kCount> sums;
  for (int64_t k = 0; k < depth; ++k) {
    if (k % kLine == 0) {  // one line of each row of the next tile; past the last row this reads nothing
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) {
        __builtin_prefetch(left.data + (i + kCount) * left.row_stride + k * left.depth_stride);
      }
    }
    sums.add(left.data + k * left.depth_stride, left.row_stride, panel + k * kPanel);
  }
  sums.write(add, out);
}

// Eight steps at a time, asking for the lines of the next group on the way.
void packed_tile(const float* left, int64_t depth, const float* panel, bool add, float* out) {
  constexpr int64_t kSteps = 8;
  constexpr int64_t kLines = kSteps * kRows / kLine;
  const float* next = left + depth * kRows;
  Sums<kRows> sums;
  int64_t k = 0;
  for (; k + kSteps <= depth; k += kSteps) {
#pragma GCC unroll 8
    for (int64_t step = 0; step < kSteps; ++step) {
      if (step % (kSteps / kLines) == 0 && step * kLines / kSteps < kLines) {
        __builtin_prefetch(next + k * kRows + step * kLines / kSteps * kLine);
      }
      sums.add(left + (k + step) * kRows, 1, panel + (k + step) * kPanel);
    }
  }
  for (; k < depth; ++k) sums.add(left + k * kRows, 1, panel + k * kPanel);
  sums.write(add, out);
}

}  // namespace

void panel_product(const Left& left, int64_t rows, int64_t depth, const float* panel, bool add, float* out) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    tile<kRows>({left.data + row * left.row_stride, left.row_stride, left.depth_stride}, depth, panel, add,
                out + row * kPanel);
  }
  for (; row < rows; ++row) {
    tile<1>({left.data + row * left.row_stride, left.row_stride, left.depth_stride}, depth, panel, add,
            out + row * kPanel);
  }
}

void packed_product(const float* left, int64_t groups, int64_t depth, const float* panel, bool add, float* out) {
  const float* ahead = panel + depth * kPanel;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t k = depth * group / groups; k < depth * (group + 1) / groups; ++k) {
      __builtin_prefetch(ahead + k * kPanel, 0, 2);
    }
    packed_tile(left + group * depth * kRows, depth, panel, add, out + group * kRows * kPanel);
  }
}

void pack_rows(const float* rows, int64_t row_stride, int64_t depth, float* to) {
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4) {  // pairs of rows, four steps of each
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRows; i += 2) {
      const Four a = *reinterpret_cast<const FourUnaligned*>(rows + i * row_stride + k);
      const Four b = *reinterpret_cast<const FourUnaligned*>(rows + (i + 1) * row_stride + k);
      const Four low = CORTEX_FAST_SHUFFLE4(a, b, 0, 4, 1, 5), high = CORTEX_FAST_SHUFFLE4(a, b, 2, 6, 3, 7);
      std::memcpy(to + k * kRows + i, &low, 8);
      std::memcpy(to + (k + 1) * kRows + i, reinterpret_cast<const char*>(&low) + 8, 8);
      std::memcpy(to + (k + 2) * kRows + i, &high, 8);
      std::memcpy(to + (k + 3) * kRows + i, reinterpret_cast<const char*>(&high) + 8, 8);
    }
  }
  for (; k < depth; ++k) {
    for (int64_t i = 0; i < kRows; ++i) to[k * kRows + i] = rows[i * row_stride + k];
  }
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
