// Bound: arithmetic, one product z C^T of 2 R K d operations; the codebook is read once for each kRowBlock rows. Of the
// R x K distances only the least of each tile of kTile codes is written, 1/96 of them.
//
// |c|^2 - 2 <z, c> in float only shortlists: tiles whose least value is within the rounding errors' bound of the best
// are searched again in double, mostly one tile a row. So the result is exact, and equal codes tie to the lower index.
#include "cortex_fast/nearest_code.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "cortex_fast/parallel.h"
#include "cortex_fast/portable.h"
#include "product.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kTile = 96;    // codes
constexpr int64_t kTiles = 4;    // of one task
constexpr int64_t kPanels = 32;  // of rows, in one block
constexpr int64_t kRowBlock = kPanels * kPanel;
constexpr int64_t kMaxDepth = 1024;  // of a panel: 64 KB
constexpr double kLargest = 1e37;    // products beyond it are left to the search in double

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The sum of value(i)^2, in double and in an order that no level changes.
template <typename Value>
CORTEX_FAST_INLINE double sum_of_squares(int64_t count, const Value& value) {
  double lanes[8] = {};
  const int64_t whole = count - count % 8;
  for (int64_t i = 0; i < whole; i += 8) {
    for (int64_t j = 0; j < 8; ++j) lanes[j] += value(i + j) * value(i + j);
  }
  for (int64_t i = whole; i < count; ++i) lanes[i - whole] += value(i) * value(i);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

double square_norm(const float* vector, int64_t channels) {
  return sum_of_squares(channels, [vector](int64_t i) { return static_cast<double>(vector[i]); });
}

double square_distance(const float* a, const float* b, int64_t channels) {
  return sum_of_squares(channels, [a, b](int64_t i) { return static_cast<double>(a[i]) - static_cast<double>(b[i]); });
}

// |c|^2 of each code, infinite if the code is not finite, which takes it out of the shortlist; the largest |c| of the
// finite codes of each tile.
struct Norms {
  std::unique_ptr<float[]> squares;
  std::unique_ptr<double[]> of_tile;
};

void measure(const NearestCode& args, int64_t tile, Norms& norms) {
  double most = 0;
  for (int64_t code = tile * kTile; code < std::min(args.codes, (tile + 1) * kTile); ++code) {
    const double square = square_norm(args.codebook + code * args.channels, args.channels);
    const bool finite = std::isfinite(square);
    norms.squares[static_cast<std::size_t>(code)] =
        finite ? static_cast<float>(square) : std::numeric_limits<float>::infinity();
    if (finite) most = std::max(most, square);
  }
  norms.of_tile[static_cast<std::size_t>(tile)] = std::sqrt(most);
}

double largest(const Norms& norms, int64_t tiles) {
  return *std::max_element(norms.of_tile.get(), norms.of_tile.get() + tiles);
}

// least[(tile, row)] of |c|^2 - 2 <z, c> for the kPanel rows of one panel and the codes of one tile.
void least_of_tile(const float* products, const float* squares, int64_t codes, float* least) {
  for (int64_t j = 0; j < kPanel; ++j) least[j] = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < codes; ++i) {
    for (int64_t j = 0; j < kPanel; ++j) {
      const float value = squares[i] - 2.0f * products[i * kPanel + j];
      least[j] = value < least[j] ? value : least[j];
    }
  }
}

// panels [panel][channels][kPanel] of `rows` rows of z.
void pack(const NearestCode& args, int64_t start, int64_t rows, float* panels) {
  for (int64_t row = 0; row < ceil_div(rows, kPanel) * kPanel; ++row) {
    const float* from = args.z + (start + row) * args.channels;
    float* to = panels + row / kPanel * kPanel * args.channels + row % kPanel;
    for (int64_t k = 0; k < args.channels; ++k) to[k * kPanel] = row < rows ? from[k] : 0.0f;
  }
}

int64_t search(const NearestCode& args, const Norms& norms, double largest_norm, const float* z, const float* least) {
  const int64_t tiles = ceil_div(args.codes, kTile);
  const double norm = std::sqrt(square_norm(z, args.channels));
  if (!std::isfinite(norm)) return 0;
  const bool fits = norm * largest_norm < kLargest && largest_norm * largest_norm < kLargest;
  // |error| of a value: d + 2 roundings of terms that sum to at most |z| |c|, twice; two of |c|^2; and underflow
  const double unit = 0x1p-24;
  const double depth = static_cast<double>(args.channels);
  const auto error = [&](int64_t tile) {
    const double code = norms.of_tile[static_cast<std::size_t>(tile)];
    const double decisive = (depth + 4) * 0x1p-51 * (norm + code) * (norm + code);  // of the distances in double
    return unit * ((2 * depth + 4) * norm * code + 2 * code * code) + (depth + 2) * 0x1p-125 + decisive;
  };
  double limit = std::numeric_limits<double>::infinity();
  for (int64_t tile = 0; fits && tile < tiles; ++tile) {
    limit = std::min(limit, static_cast<double>(least[tile * kPanel]) + error(tile));
  }
  double best = std::numeric_limits<double>::infinity();
  int64_t winner = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    if (fits && static_cast<double>(least[tile * kPanel]) - error(tile) > limit) continue;
    for (int64_t code = tile * kTile; code < std::min(args.codes, (tile + 1) * kTile); ++code) {
      const double distance = square_distance(z, args.codebook + code * args.channels, args.channels);
      if (distance < best) {  // false for a code that is not finite
        best = distance;
        winner = code;
      }
    }
  }
  return winner;
}

}  // namespace

void nearest_code(const NearestCode& args, int64_t* index, const Run& run) {
  const int64_t tiles = ceil_div(args.codes, kTile);
  Norms norms;
  norms.squares.reset(new float[static_cast<std::size_t>(args.codes)]);
  norms.of_tile.reset(new double[static_cast<std::size_t>(tiles)]);
  const int64_t block = std::min(kRowBlock, ceil_div(args.rows, kPanel) * kPanel);
  const std::unique_ptr<float[]> panels(new float[static_cast<std::size_t>(block * args.channels)]);
  const std::unique_ptr<float[]> least(new float[static_cast<std::size_t>(block * tiles)]);  // [panel][tile][kPanel]
  for (int64_t start = 0; start < args.rows; start += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, args.rows - start);
    pack(args, start, rows, panels.get());
    parallel_tasks(ceil_div(tiles, kTiles), run.threads, [&](int64_t task) {
      alignas(64) float out[kTile * kPanel];
      for (int64_t tile = task * kTiles; tile < std::min(tiles, (task + 1) * kTiles); ++tile) {
        const int64_t code = tile * kTile, codes = std::min(kTile, args.codes - code);
        if (start == 0) measure(args, tile, norms);  // here, where the product finds its codes in cache
        for (int64_t panel = 0; panel < ceil_div(rows, kPanel); ++panel) {
          const float* right = panels.get() + panel * args.channels * kPanel;
          for (int64_t k = 0; k < std::max<int64_t>(1, args.channels); k += kMaxDepth) {
            const int64_t depth = std::min(kMaxDepth, args.channels - k);
            panel_product({args.codebook + code * args.channels + k, args.channels, 1}, codes, depth,
                          right + k * kPanel, k > 0, out);
          }
          least_of_tile(out, norms.squares.get() + code, codes, least.get() + (panel * tiles + tile) * kPanel);
        }
      }
    });
    const double norm = largest(norms, tiles);
    parallel_tasks(rows, run.threads, [&](int64_t row) {
      index[start + row] = search(args, norms, norm, args.z + (start + row) * args.channels,
                                  least.get() + row / kPanel * tiles * kPanel + row % kPanel);
    });
  }
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
