// Bound: memory, a filter's 36 bytes read and 144 written, with some 150 operations in float64 between them.
//
// A task is a panel of 16 outputs: its filters of one input become 16 lanes, and each of the 36 results one line of
// memory.
#include "cortex_fast/conv3x3.h"
#include "cortex_fast/parallel.h"

namespace cortex_fast {
namespace {

using std::int64_t;

constexpr int64_t kPanel = 16;

struct Lanes {
  double of[kPanel];
};

// G w at the points 0, 1, -1, 2, -2 and infinity.
void transform(const Lanes& a, const Lanes& b, const Lanes& c, Lanes* out) {
  for (int64_t i = 0; i < kPanel; ++i) {
    const double even = a.of[i] + c.of[i], far = a.of[i] / 24 + c.of[i] / 6;
    out[0].of[i] = a.of[i] / 4;
    out[1].of[i] = -(even + b.of[i]) / 6;
    out[2].of[i] = -(even - b.of[i]) / 6;
    out[3].of[i] = far + b.of[i] / 12;
    out[4].of[i] = far - b.of[i] / 12;
    out[5].of[i] = c.of[i];
  }
}

void transform_panel(const Filters3x3& filters, int64_t panel, float* out) {
  const int64_t panels = (filters.outputs + kPanel - 1) / kPanel;
  const int64_t count = panel + 1 < panels ? kPanel : filters.outputs - panel * kPanel;
  for (int64_t input = 0; input < filters.inputs; ++input) {
    const float* first = filters.weight + panel * kPanel * filters.output_stride + input * filters.input_stride;
    Lanes taps[9] = {};
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        taps[tap].of[i] = static_cast<double>(first[i * filters.output_stride + (filters.transposed ? 8 - tap : tap)]);
      }
    }
    Lanes rows[3][6];  // w G^T
    for (int64_t y = 0; y < 3; ++y) transform(taps[3 * y], taps[3 * y + 1], taps[3 * y + 2], rows[y]);
    for (int64_t x = 0; x < 6; ++x) {
      Lanes column[6];
      transform(rows[0][x], rows[1][x], rows[2][x], column);
      for (int64_t y = 0; y < 6; ++y) {
        float* to = out + (((y * 6 + x) * panels + panel) * filters.inputs + input) * kPanel;
        for (int64_t i = 0; i < kPanel; ++i) to[i] = static_cast<float>(column[y].of[i]);
      }
    }
  }
}

}  // namespace

void conv3x3_filters(const Filters3x3& filters, float* out, int threads) {
  parallel_tasks((filters.outputs + kPanel - 1) / kPanel, threads,
                 [&](int64_t panel) { transform_panel(filters, panel, out); });
}

}  // namespace cortex_fast
