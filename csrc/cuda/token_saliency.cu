// Bound: memory. Every gradient is read once (sizeof(T) B N d m^2 bytes: 21 MB for B 4, N 20, d 256, m 16 in float32,
// 6.3 us at an H100's 3.35 TB/s) for one addition in double; the bytes written are negligible.
//
// A thread sums 16 bytes' worth of neighbouring elements over the samples, in registers, and folds them into the
// reduction of its channels: the [B, d, m, m] mean never exists. Two ways along memory, as on the CPU:
//   positions inside  a row of threads runs over grid positions, rows take channels (contiguous gradients, and others);
//   channels inside   a warp has one position and its lanes run over channels (channels-last gradients).
// The sizes alone decide how channels are split over blocks; their partial reductions go to scratch, 8 bytes a
// position.
//
// The second kernel combines a position's parts in order. Where tokens are counted it has a block for each image: a
// position is chosen where fewer than top n others precede it, so that nothing is sorted, and 256 positions are 256
// comparisons a thread. "image" counts a token at its first position in that order. Only integers are added atomically,
// so the order does not matter.
//
// A single kernel whose last block does the final pass would need its counter cleared, which costs a graph node too. A
// cluster for each image has at most 16 blocks, too few for a GPU where images are few.
#include <math.h>

#include "cortex_fast/token_saliency_cuda.h"
#include "packs.cuh"

namespace cortex_fast {
namespace cuda {
namespace {

using std::int64_t;
using std::uint32_t;
using std::uint64_t;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kBlocks = 1024;  // wanted, of the first kernel

// The larger; NaN wins, and stays: no comparison with it is true.
__device__ __forceinline__ double larger(double a, double b) { return b > a || b != b ? b : a; }

__device__ __forceinline__ double identity(Reduction reduction) {
  return reduction == Reduction::kMean ? 0.0 : -HUGE_VAL;
}

__device__ __forceinline__ double fold(Reduction reduction, double into, double sum) {
  if (reduction == Reduction::kMean) return into + sum;
  return larger(into, reduction == Reduction::kAbsMax ? fabs(sum) : sum);
}

// Combines values that are reduced already: for absmax they are magnitudes.
__device__ __forceinline__ double combine(Reduction reduction, double into, double from) {
  return reduction == Reduction::kMean ? into + from : larger(into, from);
}

struct Plan {
  int64_t batch, samples, channels, positions, width;
  int64_t batch_stride, sample_stride, channel_stride, row_stride, column_stride;
  bool packed, channels_inside, one_row;
  int columns, rows;  // of threads; a column has the positions of one access
  int64_t position_blocks, splits, channels_of_split;

  // The offset of a position within its image and channel.
  __host__ __device__ int64_t offset(int64_t position) const {
    return one_row ? position * column_stride : position / width * row_stride + position % width * column_stride;
  }
};

template <typename T>
constexpr int kPack = 16 / sizeof(T);

template <typename T>
Plan plan_of(const Gradients<T>& grads) {
  const int64_t* size = grads.sizes;
  const int64_t* stride = grads.strides;
  constexpr int64_t pack = kPack<T>;
  Plan plan{size[0],   size[1],   size[2],   size[3] * size[4],
            size[4],   stride[0], stride[1], stride[2],
            stride[3], stride[4], false,     false,
            false,     1,         1,         1,
            1,         1};
  plan.one_row = size[3] <= 1 || size[4] <= 1 || stride[3] == size[4] * stride[4];
  if (size[4] == 1) plan.column_stride = stride[3];
  // the stride of a dimension of size 1 does not matter
  const bool even_images = (size[0] == 1 || stride[0] % pack == 0) && (size[1] == 1 || stride[1] % pack == 0);
  const bool aligned = is_packed<kPack<T>>(grads.data) && even_images;
  plan.channels_inside = stride[2] == 1 && size[2] > 1 && plan.positions > 0 &&
                         !(plan.one_row && plan.column_stride == 1 && plan.positions > 1);
  int64_t block = 0;  // positions of a block
  int64_t step = 0;   // channels that a block takes at once
  if (plan.channels_inside) {
    const bool even = (size[3] == 1 || stride[3] % pack == 0) && (size[4] == 1 || stride[4] % pack == 0);
    plan.packed = aligned && even && size[2] % pack == 0;
    block = kWarps;
    step = 32 * (plan.packed ? pack : 1);
  } else {
    plan.packed = aligned && plan.one_row && plan.column_stride == 1 && plan.positions % pack == 0 &&
                  (size[2] == 1 || stride[2] % pack == 0);
    const int64_t width = plan.packed ? pack : 1;  // positions of a column
    const int64_t columns = plan.positions / width;
    plan.columns = static_cast<int>(columns < 1 ? 1 : columns < kThreads ? columns : kThreads);
    plan.rows = kThreads / plan.columns;
    block = plan.columns * width;
    step = plan.rows;
  }
  plan.position_blocks = ceil_div(plan.positions, block);
  const int64_t blocks = plan.batch * plan.position_blocks;
  const int64_t wanted = blocks == 0 ? 1 : ceil_div(kBlocks, blocks);
  plan.channels_of_split = ceil_div(ceil_div(plan.channels, wanted), step) * step;
  plan.splits = ceil_div(plan.channels, plan.channels_of_split);
  return plan;
}

template <typename T, int N>
__device__ __forceinline__ void sum_samples(const T* from, const Plan& plan, double (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = 0.0;
#pragma unroll 4
  for (int64_t n = 0; n < plan.samples; ++n) {
    float values[N];
    read_pack(from + n * plan.sample_stride, values);
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] += static_cast<double>(values[i]);
  }
}

// partial [batch, splits, positions].
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    positions_inside(const T* data, Plan plan, Reduction reduction, double* partial) {
  __shared__ double of_rows[N][kThreads];
  const int64_t split = blockIdx.x / plan.position_blocks % plan.splits;
  const int64_t image = blockIdx.x / plan.position_blocks / plan.splits;
  const int column = static_cast<int>(threadIdx.x) % plan.columns, row = static_cast<int>(threadIdx.x) / plan.columns;
  const int64_t first = (blockIdx.x % plan.position_blocks * plan.columns + column) * N;
  const bool inside = first < plan.positions;
  double best[N];
#pragma unroll
  for (int i = 0; i < N; ++i) best[i] = identity(reduction);
  if (inside && row < plan.rows) {
    const int64_t last = min(plan.channels, (split + 1) * plan.channels_of_split);
    const T* from = data + image * plan.batch_stride + plan.offset(first);
    for (int64_t channel = split * plan.channels_of_split + row; channel < last; channel += plan.rows) {
      double sums[N];
      sum_samples(from + channel * plan.channel_stride, plan, sums);
#pragma unroll
      for (int i = 0; i < N; ++i) best[i] = fold(reduction, best[i], sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) of_rows[i][threadIdx.x] = best[i];
  __syncthreads();
  if (!inside || row != 0) return;
  double* to = partial + (image * plan.splits + split) * plan.positions + first;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    for (int other = 1; other < plan.rows; ++other) {
      best[i] = combine(reduction, best[i], of_rows[i][other * plan.columns + column]);
    }
    to[i] = best[i];
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    channels_inside(const T* data, Plan plan, Reduction reduction, double* partial) {
  const int64_t split = blockIdx.x / plan.position_blocks % plan.splits;
  const int64_t image = blockIdx.x / plan.position_blocks / plan.splits;
  const int64_t position = blockIdx.x % plan.position_blocks * kWarps + threadIdx.x / 32;
  if (position >= plan.positions) return;
  const int64_t last = min(plan.channels, (split + 1) * plan.channels_of_split);
  const T* from = data + image * plan.batch_stride + plan.offset(position);
  double best = identity(reduction);
  for (int64_t channel = split * plan.channels_of_split + threadIdx.x % 32 * N; channel < last; channel += 32 * N) {
    double sums[N];
    sum_samples(from + channel, plan, sums);
#pragma unroll
    for (int i = 0; i < N; ++i) best = fold(reduction, best, sums[i]);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = combine(reduction, best, __shfl_xor_sync(0xFFFFFFFFu, best, lanes));
  }
  if (threadIdx.x % 32 == 0) partial[(image * plan.splits + split) * plan.positions + position] = best;
}

// What a reduced sum is divided by. A reduction without a case gives NaN: the kernels above have no switch, which would
// cost them stack memory.
double divisor(const Plan& plan, Reduction reduction) {
  const double samples = static_cast<double>(plan.samples);
  switch (reduction) {
    case Reduction::kAbsMax:
    case Reduction::kMax:
      return samples;
    case Reduction::kMean:
      return samples * static_cast<double>(plan.channels);
  }
  return NAN;
}

// The larger key is the larger value, and of two equal ones the lower position.
__device__ __forceinline__ uint64_t key_of(float value, int64_t position) {
  const uint32_t bits = bits_of(value + 0.0f);  // -0 becomes +0: they tie
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(value != value ? 0xFFFFFFFFu : ordered) << 32 |
         (0xFFFFFFFFu - static_cast<uint32_t>(position));
}

__device__ __forceinline__ int64_t token_at(const Counting& counting, int64_t offset) {
  switch (counting.type) {
    case Token::kUint8:
      return static_cast<const std::uint8_t*>(counting.tokens)[offset];
    case Token::kInt16:
      return static_cast<const std::int16_t*>(counting.tokens)[offset];
    case Token::kUint16:
      return static_cast<const std::uint16_t*>(counting.tokens)[offset];
    case Token::kInt32:
      return static_cast<const std::int32_t*>(counting.tokens)[offset];
    case Token::kInt64:
      break;
  }
  return static_cast<const int64_t*>(counting.tokens)[offset];
}

// One image, by its block; tsv begins with the image.
__device__ __forceinline__ void count_image(const Grids<float>& tsv, int64_t image, int64_t positions, int64_t width,
                                            const Counting& counting) {
  __shared__ uint64_t keys[kThreads];
  __shared__ int64_t tokens[kThreads];
  const auto key_at = [&](int64_t p) {
    return key_of(tsv.data[p / width * tsv.strides[1] + p % width * tsv.strides[2]], p);
  };
  const auto token_of = [&](int64_t p) {
    return token_at(counting,
                    image * counting.strides[0] + p / width * counting.strides[1] + p % width * counting.strides[2]);
  };
  for (int64_t first = 0; first < positions; first += kThreads) {
    const int64_t position = first + threadIdx.x;
    const bool inside = position < positions;
    const uint64_t key = inside ? key_at(position) : 0;
    const int64_t token = inside ? token_of(position) : 0;
    int64_t before = 0;
    bool seen = false;
    for (int64_t start = 0; start < positions; start += kThreads) {
      const int64_t other = start + threadIdx.x;
      __syncthreads();                                            // all have read the tile before
      keys[threadIdx.x] = other < positions ? key_at(other) : 0;  // 0 is the least
      tokens[threadIdx.x] = other < positions ? token_of(other) : 0;
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kThreads; ++i) {
        const bool earlier = keys[i] > key;
        before += earlier;
        seen |= earlier && tokens[i] == token;
      }
    }
    const bool chosen = inside && before < counting.top_n && !(seen && counting.per == Per::kImage);
    const int64_t label = counting.labels[image];
    if (chosen && token >= 0 && token < counting.codebook_size && label >= 0 && label < counting.num_concepts) {
      atomicAdd(reinterpret_cast<unsigned long long*>(counting.counts + label * counting.codebook_size + token), 1ull);
    }
  }
}

// Image blockIdx.x where tokens are counted; else kThreads positions of all.
__global__ void __launch_bounds__(kThreads)
    finish(const double* partial, Plan plan, Reduction reduction, double scale, float* out, Counting counting) {
  const bool counted = counting.counts != nullptr;
  const int64_t begin = counted ? blockIdx.x * plan.positions : blockIdx.x * static_cast<int64_t>(kThreads);
  const int64_t end = counted ? begin + plan.positions : min(begin + kThreads, plan.batch * plan.positions);
  for (int64_t cell = begin + threadIdx.x; cell < end; cell += kThreads) {
    const double* from = partial + cell / plan.positions * plan.splits * plan.positions + cell % plan.positions;
    double total = *from;
#pragma unroll 4
    for (int64_t split = 1; split < plan.splits; ++split) {
      total = combine(reduction, total, from[split * plan.positions]);
    }
    out[cell] = static_cast<float>(total * scale);
  }
  if (!counted) return;
  __syncthreads();
  count_image({out + begin, {0, plan.width, 1}}, blockIdx.x, plan.positions, plan.width, counting);
}

__global__ void __launch_bounds__(kThreads)
    count(Grids<float> tsv, int64_t positions, int64_t width, Counting counting) {
  tsv.data += blockIdx.x * tsv.strides[0];
  count_image(tsv, blockIdx.x, positions, width, counting);
}

}  // namespace

template <typename T>
std::size_t token_saliency_scratch(const Gradients<T>& grads) {
  const Plan plan = plan_of(grads);
  return static_cast<std::size_t>(plan.batch * plan.splits * plan.positions) * sizeof(double);
}

template <typename T>
Status token_saliency(const Gradients<T>& grads, Reduction reduction, const Counting& counting, void* scratch,
                      float* out, void* stream) {
  const Plan plan = plan_of(grads);
  if (plan.batch * plan.positions == 0) return {};
  auto* partial = static_cast<double*>(scratch);
  constexpr int pack = kPack<T>;
  const auto kernel = plan.channels_inside ? (plan.packed ? channels_inside<T, pack> : channels_inside<T, 1>)
                                           : (plan.packed ? positions_inside<T, pack> : positions_inside<T, 1>);
  const Status status =
      launch(plan.channels_inside ? "channels_inside" : "positions_inside", kernel,
             plan.batch * plan.position_blocks * plan.splits, kThreads, stream, grads.data, plan, reduction, partial);
  if (status.code != 0) return status;
  const int64_t blocks = counting.counts != nullptr ? plan.batch : ceil_div(plan.batch * plan.positions, kThreads);
  return launch("finish", finish, blocks, kThreads, stream, partial, plan, reduction, 1.0 / divisor(plan, reduction),
                out, counting);
}

Status concept_counts(const Grids<float>& tsv, const Counting& counting, int64_t batch, int64_t height, int64_t width,
                      void* stream) {
  return launch("count", count, height * width == 0 ? 0 : batch, kThreads, stream, tsv, height * width, width,
                counting);
}

#define CORTEX_FAST_GRADIENTS(T)                                       \
  template std::size_t token_saliency_scratch<T>(const Gradients<T>&); \
  template Status token_saliency<T>(const Gradients<T>&, Reduction, const Counting&, void*, float*, void*)
CORTEX_FAST_GRADIENTS(float);
CORTEX_FAST_GRADIENTS(BFloat16);
CORTEX_FAST_GRADIENTS(Float16);
#undef CORTEX_FAST_GRADIENTS

}  // namespace cuda
}  // namespace cortex_fast
