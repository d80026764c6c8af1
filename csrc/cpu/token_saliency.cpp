// Bound: memory. Every gradient is read once (4 B N d m^2 bytes: 21 MB for B 4, N 20, d 256, m 16) for one addition;
// 4 B m^2 bytes are written. Gradients in half precision are half as many bytes. The floor is those bytes over the
// memory's bandwidth.
//
// The sum over the samples is held in double for a tile of kTile elements that stays in the first cache, and is folded
// into the reduction over channels before the next tile starts: the [B, d, m, m] mean never exists. Sums in double make
// the result independent of the order of the samples within float's last bit, at no cost while memory is the bound.
//
// Two tilings, so that the inner loop runs along memory in every layout of the gradients:
//   grid inside      rows are channels, a row runs over grid positions (contiguous gradients, and any other strides);
//   channels inside  rows are positions, a row runs over channels (channels-last gradients).
// The sizes alone decide how work is split by image, block of positions and group of channels, never the threads.
#include "cortex_fast/token_saliency.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cortex_fast/parallel.h"

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {
namespace {

using std::int64_t;

constexpr int64_t kTile = 2048;          // doubles: 16 KB of sums
constexpr int64_t kGroup = 32;           // channels of one task; its partial result is 1/16 of the mean's bytes
constexpr int64_t kMaxPositions = 1024;  // of one task
constexpr int64_t kUnroll = 4;           // samples added in one pass over the sums
constexpr int64_t kLanes = 64;           // partial reductions along a row of channels

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// sums[i] += from[i] of kUnroll samples. The parentheses fix the order.
template <typename T>
void add_four(double* __restrict sums, const T* from, int64_t sample_stride, int64_t count) {
  const T* b = from + sample_stride;
  const T* c = b + sample_stride;
  const T* d = c + sample_stride;
  for (int64_t i = 0; i < count; ++i) {
    sums[i] += (static_cast<double>(load(from[i])) + static_cast<double>(load(b[i]))) +
               (static_cast<double>(load(c[i])) + static_cast<double>(load(d[i])));
  }
}

template <typename T>
void add_sample(double* __restrict sums, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(load(from[i]));
}

template <typename T>
void add_strided(double* sums, const T* from, int64_t stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(load(from[i * stride]));
}

// into[i] = the larger; NaN wins and stays, because no comparison with it is true.
void fold_max(double* into, const double* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = from[i];
    into[i] = (value > into[i]) | (value != value) ? value : into[i];
  }
}

void fold_absmax(double* into, const double* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = std::fabs(from[i]);
    into[i] = (value > into[i]) | (value != value) ? value : into[i];
  }
}

void fold_sum(double* into, const double* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) into[i] += from[i];
}

double identity(Reduction reduction) {
  switch (reduction) {
    case Reduction::kAbsMax:
    case Reduction::kMax:
      return -std::numeric_limits<double>::infinity();
    case Reduction::kMean:
      return 0.0;
  }
  return std::numeric_limits<double>::quiet_NaN();  // the compiler refuses a reduction without a case
}

void fold(Reduction reduction, double* into, const double* from, int64_t count) {
  switch (reduction) {
    case Reduction::kAbsMax:
      return fold_absmax(into, from, count);
    case Reduction::kMax:
      return fold_max(into, from, count);
    case Reduction::kMean:
      return fold_sum(into, from, count);
  }
}

// Folds values that are reduced already: for absmax they are magnitudes.
void combine(Reduction reduction, double* into, const double* from, int64_t count) {
  switch (reduction) {
    case Reduction::kAbsMax:
    case Reduction::kMax:
      return fold_max(into, from, count);
    case Reduction::kMean:
      return fold_sum(into, from, count);
  }
}

// A row of channels and the result before it, reduced to one number: kLanes partial reductions, then by halves.
double fold_row(Reduction reduction, const double* row, int64_t count, double before) {
  double lanes[kLanes];
  std::fill_n(lanes, kLanes, identity(reduction));
  for (int64_t i = 0; i < count; i += kLanes) fold(reduction, lanes, row + i, std::min(kLanes, count - i));
  for (int64_t half = kLanes / 2; half > 0; half /= 2) combine(reduction, lanes, lanes + half, half);
  combine(reduction, lanes, &before, 1);
  return lanes[0];
}

// One tile of sums: `rows` rows of `length` elements; the offset of a row comes from `row_offset`.
template <typename T, typename RowOffset>
void sum_samples(const T* from, int64_t samples, int64_t sample_stride, int64_t rows, int64_t length,
                 int64_t inner_stride, const RowOffset& row_offset, double* sums) {
  std::fill_n(sums, rows * length, 0.0);
  int64_t n = 0;
  if (inner_stride == 1) {
    for (; n + kUnroll <= samples; n += kUnroll) {
      for (int64_t row = 0; row < rows; ++row) {
        add_four(sums + row * length, from + n * sample_stride + row_offset(row), sample_stride, length);
      }
    }
  }
  for (; n < samples; ++n) {
    for (int64_t row = 0; row < rows; ++row) {
      const T* start = from + n * sample_stride + row_offset(row);
      if (inner_stride == 1) {
        add_sample(sums + row * length, start, length);
      } else {
        add_strided(sums + row * length, start, inner_stride, length);
      }
    }
  }
}

struct Shape {
  int64_t batch, samples, channels, height, width;
  int64_t batch_stride, sample_stride, channel_stride, row_stride, column_stride;

  int64_t positions() const { return height * width; }
};

template <typename T>
Shape shape_of(const Gradients<T>& grads) {
  const int64_t* size = grads.sizes;
  const int64_t* stride = grads.strides;
  Shape s{size[0], size[1], size[2], size[3], size[4], stride[0], stride[1], stride[2], stride[3], stride[4]};
  // A size of one has any stride: choose those that make the grid one row of memory wherever it can be.
  if (s.width == 1) {
    s.width = s.height;
    s.column_stride = s.row_stride;
    s.height = 1;
  }
  if (s.height == 1 || s.row_stride == s.width * s.column_stride) {
    s.width *= s.height;
    s.height = 1;
    if (s.width == 1) s.column_stride = 1;
  }
  return s;
}

// What a reduced sum is divided by. For the maxima this is exact, since division keeps the order.
double divisor(const Shape& s, Reduction reduction) {
  const double samples = static_cast<double>(s.samples);
  switch (reduction) {
    case Reduction::kAbsMax:
    case Reduction::kMax:
      return samples;
    case Reduction::kMean:
      return samples * static_cast<double>(s.channels);
  }
  return std::numeric_limits<double>::quiet_NaN();
}

// Grid rows (after the collapse in shape_of, mostly one row that is the whole grid) are cut into blocks of at most
// kMaxPositions; a task is one block of one group of channels of one image, its result a row of `partial`.
template <typename T>
void grid_inside(const T* data, const Shape& s, Reduction reduction, float* out, int threads) {
  const int64_t block = std::min(s.width, kMaxPositions);
  const int64_t blocks = ceil_div(s.width, block);
  const int64_t groups = ceil_div(s.channels, kGroup);
  const int64_t channels_of_tile = std::max<int64_t>(1, kTile / block);
  const int64_t cells = s.batch * s.positions();
  std::vector<double> partial(static_cast<std::size_t>(groups * cells), identity(reduction));

  parallel_ranges(s.batch * groups * s.height * blocks, threads, [&](int, int64_t begin, int64_t end) {
    double sums[kTile];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t column = task % blocks * block;
      const int64_t y = task / blocks % s.height;
      const int64_t group = task / (blocks * s.height) % groups;
      const int64_t image = task / (blocks * s.height * groups);
      const int64_t length = std::min(block, s.width - column);
      const int64_t last = std::min(s.channels, (group + 1) * kGroup);
      const T* origin = data + image * s.batch_stride + y * s.row_stride + column * s.column_stride;
      double* into = partial.data() + group * cells + image * s.positions() + y * s.width + column;
      for (int64_t channel = group * kGroup; channel < last; channel += channels_of_tile) {
        const int64_t rows = std::min(channels_of_tile, last - channel);
        sum_samples(
            origin + channel * s.channel_stride, s.samples, s.sample_stride, rows, length, s.column_stride,
            [&s](int64_t row) { return row * s.channel_stride; }, sums);
        for (int64_t row = 0; row < rows; ++row) fold(reduction, into, sums + row * length, length);
      }
    }
  });

  const double scale = divisor(s, reduction);
  for (int64_t group = 1; group < groups; ++group) {
    combine(reduction, partial.data(), partial.data() + group * cells, cells);
  }
  for (int64_t i = 0; i < cells; ++i) out[i] = static_cast<float>(partial[static_cast<std::size_t>(i)] / scale);
}

// A task is one block of positions of one image, with all its channels, in runs that fit the tile.
template <typename T>
void channels_inside(const T* data, const Shape& s, Reduction reduction, float* out, int threads) {
  const int64_t run = std::min(s.channels, kTile);
  const int64_t block = std::min(s.positions(), std::max<int64_t>(1, kTile / run));
  const int64_t blocks = ceil_div(s.positions(), block);
  const double scale = divisor(s, reduction);

  parallel_ranges(s.batch * blocks, threads, [&](int, int64_t begin, int64_t end) {
    double sums[kTile];
    double reduced[kTile];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * block;
      const int64_t image = task / blocks;
      const int64_t rows = std::min(block, s.positions() - first);
      const auto offset = [&s, first](int64_t row) {
        const int64_t position = first + row;
        return position / s.width * s.row_stride + position % s.width * s.column_stride;
      };
      std::fill_n(reduced, rows, identity(reduction));
      for (int64_t channel = 0; channel < s.channels; channel += run) {
        const int64_t length = std::min(run, s.channels - channel);
        sum_samples(data + image * s.batch_stride + channel, s.samples, s.sample_stride, rows, length, 1, offset, sums);
        for (int64_t row = 0; row < rows; ++row) {
          reduced[row] = fold_row(reduction, sums + row * length, length, reduced[row]);
        }
      }
      float* to = out + image * s.positions() + first;
      for (int64_t row = 0; row < rows; ++row) to[row] = static_cast<float>(reduced[row] / scale);
    }
  });
}

}  // namespace

template <typename T>
void token_saliency(const Gradients<T>& grads, Reduction reduction, float* out, const Run& run) {
  const Shape s = shape_of(grads);
  if (s.batch * s.positions() == 0) return;
  if (s.channel_stride == 1 && s.channels > 1 && (s.column_stride != 1 || s.positions() == 1)) {
    channels_inside(grads.data, s, reduction, out, run.threads);
  } else {
    grid_inside(grads.data, s, reduction, out, run.threads);
  }
}

template void token_saliency<float>(const Gradients<float>&, Reduction, float*, const Run&);
template void token_saliency<BFloat16>(const Gradients<BFloat16>&, Reduction, float*, const Run&);
template void token_saliency<Float16>(const Gradients<Float16>&, Reduction, float*, const Run&);

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
