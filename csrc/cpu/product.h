// Matrix products on tiles that stay in cache: the inner kernel of every operator that multiplies with the codebook.
#pragma once

#include <cstdint>

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {

using std::int64_t;

constexpr int64_t kPanel = 16;  // columns of a packed right-hand side

// Rows of a packed left-hand side, and of a tile of the result: as many as there are registers for its sums.
#if defined(__AVX512F__)
constexpr int64_t kRows = 12;
#elif defined(__AVX2__)
constexpr int64_t kRows = 6;
#else
constexpr int64_t kRows = 2;
#endif

// A left-hand side read in place: element (i, k) is data[i * row_stride + k * depth_stride].
struct Left {
  const float* data;
  int64_t row_stride, depth_stride;
};

// out[i * kPanel + j] = sum over k of left(i, k) panel[k * kPanel + j], for i in [0, rows) and j in [0, kPanel); where
// `add` is true the sum is added to what out holds. The terms of a sum are added in the order of k, one multiply-add
// each.
void panel_product(const Left& left, int64_t rows, int64_t depth, const float* panel, bool add, float* out);

// The same for `groups` groups of kRows rows, each packed as [depth][kRows], one behind the other. What follows the
// panel in memory is fetched ahead: best the panel of the next call.
void packed_product(const float* left, int64_t groups, int64_t depth, const float* panel, bool add, float* out);

// kRows rows, `row_stride` apart, packed: to[k * kRows + i] = rows[i * row_stride + k] for k in [0, depth).
void pack_rows(const float* rows, int64_t row_stride, int64_t depth, float* to);

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
