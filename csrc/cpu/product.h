// Matrix products on tiles that stay in cache: the inner kernel of every operator that multiplies with the codebook.
#pragma once

#include <cstdint>

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {

using std::int64_t;

constexpr int64_t kPanel = 16;  // columns of a packed right-hand side

// A left-hand side read in place: element (i, k) is data[i * row_stride + k * depth_stride].
struct Left {
  const float* data;
  int64_t row_stride, depth_stride;
};

// out[i * kPanel + j] = sum over k of left(i, k) panel[k * kPanel + j], for i in [0, rows) and j in [0, kPanel); where
// `add` is true the sum is added to what out holds. The terms of a sum are added in the order of k, one multiply-add
// each.
void panel_product(const Left& left, int64_t rows, int64_t depth, const float* panel, bool add, float* out);

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
