// Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// 2016): 36 products for 16 outputs instead of 144.
//
// Bound: the products, 36 of [tiles, inputs] [inputs, outputs], 4.5 operations an output and input channel; the weights
// are 4 times a plain filter's bytes and are streamed once for each block of kTiles tiles, 48 operations a byte.
// Transformed tiles of one block are 36 kTiles inputs floats (7 MB at 512 channels), the products of one task 36 kTiles
// 128 floats (1.8 MB): nothing of the size of the images is allocated.
//
// Work goes in waves of blocks: first a wave's input transforms, split by tile; then its products and output
// transforms, split by block and group of outputs. The output transform also applies bias, ReLU and max-pooling, and
// writes their mask; the input transform applies the mask of a backward pass. Each output's terms are added in one
// fixed order, so that results depend neither on threads nor on the batch.
#include "cortex_fast/conv3x3.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "cortex_fast/parallel.h"
#include "pack.h"
#include "product.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

constexpr int64_t kPoints = 36;
constexpr int64_t kTiles = 96;       // of one block
constexpr int64_t kGroupPanels = 8;  // panels of outputs in one task
// terms of one sum; longer sums have rounding errors above 1e-5 of the largest output
constexpr int64_t kMaxDepth = 64;
constexpr int64_t kChannels = 16;             // of tiles transformed together: a line of each pixel
constexpr int64_t kParts = kPanel / kFloats;  // vectors of a panel
constexpr int64_t kSmall = 1 << 21;           // operations: for fewer, waking a thread costs more than it saves
static_assert(kPanel % kFloats == 0 && kChannels % kFloats == 0);
static_assert(kTiles % kRows == 0 && kMaxDepth % kChannels == 0);

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

FloatVector splat(float value) { return FloatVector{} + value; }

// Bit i of the result is set where lane i of the mask is.
uint32_t bits_of_lanes(IntVector mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kFloats; ++i) bits |= (mask[i] != 0 ? 1u : 0u) << i;
  return bits;
#endif
}

// Lanes of all ones where the bit is set.
IntVector lanes_of_bits(uint32_t bits) {
  IntVector bit;
  for (int i = 0; i < kFloats; ++i) bit[i] = static_cast<int32_t>(1u << i);
  return ((IntVector{} + static_cast<int32_t>(bits)) & bit) != 0;
}

struct Tiling {
  int64_t down, across, total;  // tiles of one image, of all
};

Tiling tiling_of(const Conv3x3& args) {
  const int64_t down = ceil_div(args.height, 4), across = ceil_div(args.width, 4);
  return {down, across, args.images * down * across};
}

struct Place {
  int64_t image, top, left;  // of the tile's 4 x 4 outputs
};

Place place_of(const Tiling& tiling, int64_t tile) {
  const int64_t in_image = tile % (tiling.down * tiling.across);
  return {tile / (tiling.down * tiling.across), in_image / tiling.across * 4, in_image % tiling.across * 4};
}

// B^T d of six vectors.
CORTEX_FAST_INLINE void transform_input(const FloatVector d[6], FloatVector out[6]) {
  const FloatVector four = splat(4), five = splat(5), two = splat(2);
  const FloatVector a = d[4] - four * d[2], b = d[3] - four * d[1], c = d[4] - d[2], e = two * (d[3] - d[1]);
  out[0] = four * d[0] - five * d[2] + d[4];
  out[1] = a + b;
  out[2] = a - b;
  out[3] = c + e;
  out[4] = c - e;
  out[5] = four * d[1] - five * d[3] + d[5];
}

// A^T m of six vectors.
CORTEX_FAST_INLINE void transform_output(const FloatVector m[6], FloatVector out[4]) {
  const FloatVector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  out[0] = m[0] + a + c;
  out[1] = b + splat(2) * e;
  out[2] = a + splat(4) * c;
  out[3] = b + splat(8) * e + m[5];
}

// Where one pixel of a tile's 6 x 6 inputs lies; null outside the image.
struct Pixel {
  const float* values;
  const uint8_t* mask;  // or null: all pass
};

void pixels_of(const Conv3x3& args, const Place& place, Pixel pixels[36]) {
  const int64_t all_height = args.height + 2 - 2 * args.padding, all_width = args.width + 2 - 2 * args.padding;
  const int64_t height = args.unpool ? all_height / 2 : all_height, width = args.unpool ? all_width / 2 : all_width;
  const int64_t mask_bytes = ceil_div(args.inputs, 8);
  for (int64_t i = 0; i < 36; ++i) {
    const int64_t y = place.top - args.padding + i / 6, x = place.left - args.padding + i % 6;
    const int64_t from_y = args.unpool ? y / 2 : y, from_x = args.unpool ? x / 2 : x;
    const bool inside = y >= 0 && x >= 0 && y < all_height && x < all_width && from_y < height && from_x < width;
    pixels[i].values = inside ? args.input + ((place.image * height + from_y) * width + from_x) * args.inputs : nullptr;
    pixels[i].mask = inside && args.input_mask != nullptr
                         ? args.input_mask + ((place.image * all_height + y) * all_width + x) * mask_bytes
                         : nullptr;
  }
}

// Channels [channel, channel + kFloats) of a pixel, 0 past the last.
CORTEX_FAST_INLINE FloatVector load_pixel(const Pixel& pixel, int64_t channel, int64_t channels) {
  if (pixel.values == nullptr || channel >= channels) return FloatVector{};
  FloatVector values{};
  if (channel + kFloats <= channels) {
    values = *reinterpret_cast<const FloatMemory*>(pixel.values + channel);
  } else {
    for (int64_t i = 0; channel + i < channels; ++i) values[i] = pixel.values[channel + i];
  }
  if (pixel.mask != nullptr) {
    uint32_t bits = static_cast<uint32_t>(pixel.mask[channel / 8]) >> (channel % 8);
    if (kFloats == 16 && channel + 8 < channels) bits |= static_cast<uint32_t>(pixel.mask[channel / 8 + 1]) << 8;
    values = (FloatVector)((IntVector)values & lanes_of_bits(bits));
  }
  return values;
}

// V of channels [channel, channel + kChannels) of one tile: transformed[point * point_stride + c].
void input_tile(const Pixel pixels[36], int64_t channel, int64_t channels, int64_t point_stride, float* transformed) {
  for (int64_t c = 0; c < kChannels; c += kFloats) {
    FloatVector rows[6][6];  // d B, by row of d
    for (int y = 0; y < 6; ++y) {
      FloatVector d[6];
      for (int x = 0; x < 6; ++x) d[x] = load_pixel(pixels[y * 6 + x], channel + c, channels);
      transform_input(d, rows[y]);
    }
    for (int x = 0; x < 6; ++x) {
      const FloatVector column[6] = {rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]};
      FloatVector out[6];
      transform_input(column, out);
      for (int y = 0; y < 6; ++y) {
        *reinterpret_cast<FloatMemory*>(transformed + (y * 6 + x) * point_stride + c) = out[y];
      }
    }
  }
}

// The place of a group's channel in V of one block of tiles, for each point. Channels come in parts of kMaxDepth; a
// part has the groups of kRows tiles one after the other, packed.
int64_t packed_at(const Conv3x3& args, int64_t group, int64_t channel) {
  const int64_t part = channel / kMaxDepth * kMaxDepth;
  const int64_t depth = std::min(kMaxDepth, args.inputs - part);
  return part * kTiles + (group * depth + channel - part) * kRows;
}

// V of one group of tiles, 0 past the last, into a block's.
void input_group(const Conv3x3& args, const Tiling& tiling, int64_t block, int64_t group, float* transformed) {
  Pixel pixels[kRows][36] = {};
  const int64_t tile = block * kTiles + group * kRows;
  for (int64_t i = 0; i < kRows && tile + i < tiling.total; ++i) {
    pixels_of(args, place_of(tiling, tile + i), pixels[i]);
  }
  for (int64_t channel = 0; channel < args.inputs; channel += kChannels) {
    float rows[kPoints][kRows][kChannels];
    for (int64_t i = 0; i < kRows; ++i) {
      input_tile(pixels[i], channel, args.inputs, kRows * kChannels, rows[0][i]);
    }
    for (int64_t point = 0; point < kPoints; ++point) {
      pack_rows(rows[point][0], kChannels, std::min(kChannels, args.inputs - channel),
                transformed + point * kTiles * args.inputs + packed_at(args, group, channel));
    }
  }
}

// Four by four outputs of a panel of channels, and their mask's bits.
struct Outputs {
  float values[4][4][kPanel];
  uint32_t bits[4][4];
};

// Writes the largest element of each 2 x 2 window to the window's first, and sets the bit of the first largest one, if
// it is above `floor`.
CORTEX_FAST_INLINE void pool_part(float floor, FloatVector tile[4][4], uint32_t bits[4][4]) {
  for (int y = 0; y < 4; y += 2) {
    for (int x = 0; x < 4; x += 2) {
      FloatVector best = tile[y][x];
      for (int i = 1; i < 4; ++i) {
        const FloatVector other = tile[y + i / 2][x + i % 2];
        best = (other > best) | (other != other) ? other : best;  // NaN wins, and stays
      }
      IntVector free = best > splat(floor);
      for (int i = 0; i < 4; ++i) {
        const IntVector chosen = (tile[y + i / 2][x + i % 2] == best) & free;
        bits[y + i / 2][x + i % 2] = bits_of_lanes(chosen);
        free = free & ~chosen;
      }
      tile[y][x] = best;
    }
  }
}

// One tile of one panel, from its 36 products, `stride` apart.
void output_tile(const Conv3x3& args, const float* products, int64_t stride, int64_t channel, Outputs& outputs) {
  for (auto& row : outputs.bits) std::fill_n(row, 4, 0u);
  for (int64_t part = 0; part < kParts; ++part) {
    FloatVector rows[6][4];
    for (int y = 0; y < 6; ++y) {
      FloatVector m[6];
      for (int x = 0; x < 6; ++x) {
        m[x] = *reinterpret_cast<const FloatMemory*>(products + (y * 6 + x) * stride + part * kFloats);
      }
      transform_output(m, rows[y]);
    }
    FloatVector bias{};
    for (int64_t i = 0; args.bias != nullptr && i < kFloats && channel + part * kFloats + i < args.outputs; ++i) {
      bias[i] = args.bias[channel + part * kFloats + i];
    }
    FloatVector tile[4][4];
    for (int x = 0; x < 4; ++x) {
      const FloatVector column[6] = {rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]};
      FloatVector out[4];
      transform_output(column, out);
      for (int y = 0; y < 4; ++y) tile[y][x] = out[y] + bias;
    }
    uint32_t bits[4][4] = {};
    if (args.relu) {
      for (int i = 0; i < 16; ++i) {
        FloatVector& value = tile[i / 4][i % 4];
        bits[i / 4][i % 4] = bits_of_lanes(value > splat(0));
        value = value <= splat(0) ? splat(0) : value;  // NaN stays
      }
    }
    if (args.pool) pool_part(args.relu ? 0.0f : -std::numeric_limits<float>::infinity(), tile, bits);
    for (int i = 0; i < 16; ++i) {
      *reinterpret_cast<FloatMemory*>(outputs.values[i / 4][i % 4] + part * kFloats) = tile[i / 4][i % 4];
      outputs.bits[i / 4][i % 4] |= bits[i / 4][i % 4] << (part * kFloats);
    }
  }
}

void write_tile(const Conv3x3& args, const Place& place, int64_t channel, const Outputs& outputs) {
  const int64_t channels = std::min(kPanel, args.outputs - channel);
  const int64_t step = args.pool ? 2 : 1;
  const int64_t height = args.height / step, width = args.width / step;
  for (int64_t y = 0; y < 4; y += step) {
    for (int64_t x = 0; x < 4; x += step) {
      const int64_t to_y = (place.top + y) / step, to_x = (place.left + x) / step;
      if (to_y >= height || to_x >= width) continue;
      std::copy_n(outputs.values[y][x], channels,
                  args.output + ((place.image * height + to_y) * width + to_x) * args.outputs + channel);
    }
  }
  if (args.output_mask == nullptr) return;
  const int64_t mask_bytes = ceil_div(args.outputs, 8);
  for (int64_t y = 0; y < std::min<int64_t>(4, args.height - place.top); ++y) {
    for (int64_t x = 0; x < std::min<int64_t>(4, args.width - place.left); ++x) {
      uint8_t* to = args.output_mask +
                    ((place.image * args.height + place.top + y) * args.width + place.left + x) * mask_bytes +
                    channel / 8;
      to[0] = static_cast<uint8_t>(outputs.bits[y][x]);
      if (channels > 8) to[1] = static_cast<uint8_t>(outputs.bits[y][x] >> 8);
    }
  }
}

// Products and output transforms of one block of tiles and one group of panels.
void output_block(const Conv3x3& args, const Tiling& tiling, const float* transformed, int64_t first_tile,
                  int64_t tiles, int64_t first_panel, int64_t panels, float* products) {
  const int64_t all_panels = ceil_div(args.outputs, kPanel);
  for (int64_t point = 0; point < kPoints; ++point) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* right = args.winograd + (point * all_panels + first_panel + panel) * args.inputs * kPanel;
      float* out = products + (panel * kPoints + point) * kTiles * kPanel;
      for (int64_t k = 0; k < args.inputs; k += kMaxDepth) {
        packed_product(transformed + point * kTiles * args.inputs + packed_at(args, 0, k), ceil_div(tiles, kRows),
                       std::min(kMaxDepth, args.inputs - k), right + k * kPanel, k > 0, out);
      }
    }
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const Place place = place_of(tiling, first_tile + tile);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t channel = (first_panel + panel) * kPanel;
      Outputs outputs;
      output_tile(args, products + panel * kPoints * kTiles * kPanel + tile * kPanel, kTiles * kPanel, channel,
                  outputs);
      write_tile(args, place, channel, outputs);
    }
  }
}

std::unique_ptr<float[]> scratch_of(int64_t floats) {
  std::unique_ptr<float[]> memory(new float[static_cast<std::size_t>(floats)]);
  advise_large_pages(memory.get(), static_cast<std::size_t>(floats) * sizeof(float));
  return memory;
}

}  // namespace

void conv3x3(const Conv3x3& args, const Run& run) {
  const Tiling tiling = tiling_of(args);
  const int threads = 2 * kPoints * tiling.total * args.inputs * args.outputs < kSmall ? 1 : run.threads;
  const int64_t blocks = ceil_div(tiling.total, kTiles);
  const int64_t wave = std::min<int64_t>(blocks, std::clamp(threads, 2, 16));
  const int64_t panels = ceil_div(args.outputs, kPanel), groups = ceil_div(panels, kGroupPanels);
  const int64_t block_size = kPoints * kTiles * args.inputs;
  const std::unique_ptr<float[]> transformed = scratch_of(wave * block_size);
  const int64_t scratch = kGroupPanels * kPoints * kTiles * kPanel;
  const int64_t workers = range_count(wave * groups, threads);
  const std::unique_ptr<float[]> products = scratch_of(workers * scratch);
  for (int64_t start = 0; start < blocks; start += wave) {
    const int64_t count = std::min(wave, blocks - start);
    const int64_t tiles = std::min(tiling.total - start * kTiles, count * kTiles);
    parallel_tasks(ceil_div(tiles, kRows), threads, [&](int64_t task) {
      const int64_t block = task / (kTiles / kRows), group = task % (kTiles / kRows);
      input_group(args, tiling, start + block, group, transformed.get() + block * block_size);
    });
    parallel_workers(count * groups, threads, [&](int worker, int64_t task) {
      const int64_t block = task / groups, panel = task % groups * kGroupPanels;
      const int64_t tile = (start + block) * kTiles;
      output_block(args, tiling, transformed.get() + block * block_size, tile, std::min(kTiles, tiling.total - tile),
                   panel, std::min(kGroupPanels, panels - panel), products.get() + worker * scratch);
    });
  }
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
