// The backward pass of gumbel_codebook, dP = y (D - <y, D>) / tau with D = dE C^T, and the same, fused with
// an update of P.
//
// Bound. An Adam step reads and writes P, m and v, with the read for the forward pass 28 bytes an element. D costs 2 d
// operations an element, each as six products of bfloat16: at d = 256 and 16,000 rows of 16,384 codes 0.8 TFLOP, at two
// thirds of an H100's rate by mma.sync 1.3 ms, where the step's own 24 bytes take 2.1 ms; beside them stand some 130
// instructions an element for the noise, the softmax and Adam, and 6 GB of blocks that come from the L2 cache.
// Predicted, not measured: 2.5 to 3.2 ms; with the forward pass's scan 4 to 5 ms, half of what copying the bytes takes.
//
// One pass: the row's term <y, D> is dE . (y C), and y C is one of the row statistics, so that a tile of dE C^T is all
// that a tile of dP needs. The tile goes through shared memory, from the matrix units' order to rows, in which a thread
// has four neighbouring codes: one Philox block, and 16 bytes of each array. Two blocks share a multiprocessor, so that
// one's products run beside the other's reads and writes. Nothing of size R x K is written but dP, in a step not even
// that.
//
// Both D and its mean are taken relative to the selected code w: D_k - D_w, 0 for w itself, and dE . (y C - C_w). Where
// a row has settled on w its gradient is then 0, as it is in the formula; the difference of two large sums would leave
// rounding error, which Adam would scale up to a full step. The penalty `stay_penalty` for leaving a row's anchor is
// subtracted from D there, and from the mean.
#include <cmath>

#include "gumbel_tiles.cuh"

namespace cortex_fast {
namespace cuda {
namespace {

constexpr int kCodes = 128;             // of a tile
constexpr int kPitch = kCodes + 8;      // floats of a tile's row in shared memory
constexpr std::int64_t kFewRows = 512;  // up to here tiles have 32 rows, so that there are more of them
constexpr int kStages = 3;

enum Rule { kGradient, kDescent, kAdam };

// What the update needs of a row, from `row_terms`.
struct alignas(16) Row {
  float score, log_denominator;  // y = exp((s - score) / tau - log_denominator)
  float highest, term;           // D_w, and <y, D> - D_w
  int selected, anchor;          // anchor: -1 without a penalty
  std::uint32_t item, place;
};

// How far the optimiser goes; and tau and draw.
struct alignas(16) Numbers {
  float rate;          // lr, of Adam over its first correction
  float inverse_root;  // of Adam's second correction
  float inverse_tau;
  std::uint32_t draw;
};

struct Optimiser {
  Rule rule;
  float* out;  // dP, or P itself
  float *first_moment, *second_moment;
  double lr, log_beta1, log_beta2, step_count;
  float rest1, beta2, rest2, eps;  // rest: 1 - beta, which a float32 beta would not give
  const std::int64_t* anchor;      // or null
  float stay_penalty;
  bool vector;
};

__device__ __forceinline__ Numbers numbers_of(const Field& field, const Optimiser& optimiser) {
  const double lr = field.schedule == nullptr ? optimiser.lr : field.schedule[2];
  const double step_count = field.schedule == nullptr ? optimiser.step_count : field.schedule[3];
  Numbers numbers{static_cast<float>(lr), 1.0f, inverse_tau(field), draw_of(field)};
  if (optimiser.rule == kAdam) {
    numbers.rate = static_cast<float>(lr / -expm1(step_count * optimiser.log_beta1));
    numbers.inverse_root = static_cast<float>(1.0 / sqrt(-expm1(step_count * optimiser.log_beta2)));
  }
  return numbers;
}

// A warp a row: D_w = dE . C_w, and <y, D> - D_w = dE . (y C - C_w), less stay_penalty y[anchor].
__global__ void __launch_bounds__(kThreads)
    row_terms(Field field, Optimiser optimiser, const float* codebook, const float* upstream, RowStats row_stats,
              Row* rows, Numbers* numbers_out) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (blockIdx.x == 0 && threadIdx.x == 0) *numbers_out = numbers_of(field, optimiser);
  if (row >= field.count) return;
  const int selected = static_cast<int>(row_stats.selected[row]);
  const float* soft = row_stats.soft_embedding + row * field.channels;
  const float* code = codebook + static_cast<std::int64_t>(selected) * field.channels;
  float highest = 0.0f, term = 0.0f;
  for (int channel = lane; channel < field.channels; channel += 32) {
    const float left = upstream[row * field.channels + channel];
    highest = multiply_add(left, code[channel], highest);
    term = multiply_add(left, soft[channel] - code[channel], term);
  }
  highest = sum_of_lanes<32>(highest);
  term = sum_of_lanes<32>(term);
  if (lane != 0) return;
  Row out{row_stats.largest_score[row], row_stats.log_denominator[row], highest, term, selected, -1, 0, 0};
  out.item = static_cast<std::uint32_t>(field.item_ids[row / field.rows]);
  out.place = static_cast<std::uint32_t>(row % field.rows);
  if (optimiser.anchor != nullptr) {
    out.anchor = static_cast<int>(optimiser.anchor[row]);
    const std::int64_t at = row * field.codes + out.anchor;
    float noise;
    if (field.gumbel != nullptr) {
      noise = field.gumbel[at];
    } else {
      const auto words = words_of(field, draw_of(field), out.item, out.place, out.anchor);
      const std::uint32_t even = out.anchor % 4 < 2 ? words.words[0] : words.words[2];
      const std::uint32_t odd = out.anchor % 4 < 2 ? words.words[1] : words.words[3];
      noise = gumbel_of(out.anchor % 2 == 0 ? even : odd);
    }
    const float y = exp_of((field.logits[at] + noise - out.score) * inverse_tau(field) - out.log_denominator);
    out.term = multiply_add(-optimiser.stay_penalty, y, out.term);
  }
  rows[row] = out;
}

// Four codes of a row: dP from D, and the rule's step along it. All that it reads is requested before the arithmetic.
template <bool kOnce>
__device__ __forceinline__ void follow(const Field& field, const Optimiser& optimiser, const Numbers& numbers,
                                       const Row& of_row, std::int64_t row, int code, const Quad& d) {
  const std::int64_t from = row * field.codes;
  Quad p = logits_of<kOnce>(field, row, code), m{}, v{};
  if (optimiser.rule == kAdam) {
    m = load_quad<kOnce>(optimiser.first_moment + from, code, field.codes, optimiser.vector, 0.0f);
    v = load_quad<kOnce>(optimiser.second_moment + from, code, field.codes, optimiser.vector, 0.0f);
  }
  const Quad scores = scores_of(field, numbers.draw, of_row.item, of_row.place, row, code, p);
  Quad gradient;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float y = exp_of((scores.of[i] - of_row.score) * numbers.inverse_tau - of_row.log_denominator);
    float relative = code + i == of_row.selected ? 0.0f : d.of[i] - of_row.highest;
    if (code + i == of_row.anchor) relative -= optimiser.stay_penalty;
    gradient.of[i] = y * (relative - of_row.term) * numbers.inverse_tau;
  }
  if (optimiser.rule == kGradient) {
    p = gradient;
  } else if (optimiser.rule == kDescent) {
#pragma unroll
    for (int i = 0; i < 4; ++i) p.of[i] = multiply_add(-numbers.rate, gradient.of[i], p.of[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float g = gradient.of[i];
      m.of[i] = multiply_add(g - m.of[i], optimiser.rest1, m.of[i]);
      v.of[i] = multiply_add(g * g, optimiser.rest2, v.of[i] * optimiser.beta2);
      const float size = multiply_add(root(v.of[i]), numbers.inverse_root, optimiser.eps);
      p.of[i] = multiply_add(-numbers.rate, m.of[i] / size, p.of[i]);
    }
    store_quad<kOnce>(optimiser.first_moment + from, code, field.codes, optimiser.vector, m);
    store_quad<kOnce>(optimiser.second_moment + from, code, field.codes, optimiser.vector, v);
  }
  store_quad<kOnce>(optimiser.out + from, code, field.codes, optimiser.vector, p);
}

// A tile of 16 kRowBlocks rows and 128 codes; tiles side by side in the launch's order share their codes.
template <int kRowBlocks>
struct Tile {
  using Slices = Ring<kStages, kRowBlocks + kCodes / 16>;
  static constexpr int kRows = 16 * kRowBlocks;
  static constexpr int kShared = Slices::kBytes > kRows * kPitch * 4 ? Slices::kBytes : kRows * kPitch * 4;
  static constexpr int kAcross = kRowBlocks / 2;                 // warps one below the other, 32 rows each
  static constexpr int kCodeBlocks = kCodes / 16 * kAcross / 8;  // of 16 codes, of a warp
};

template <int kRowBlocks, int kProducts>
__global__ void __launch_bounds__(kThreads, 2)
    update(Field field, Optimiser optimiser, const unsigned char* codes, const unsigned char* upstream, const Row* rows,
           const Numbers* numbers_in, unsigned row_tiles) {
  using Shape = Tile<kRowBlocks>;
  auto* shared = dynamic_shared<unsigned char>();
  const typename Shape::Slices ring{shared};
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x % row_tiles) * Shape::kRows;
  const int first_code = static_cast<int>(blockIdx.x / row_tiles) * kCodes;
  const int slices = (field.channels + 15) / 16;

  const auto copy_slice = [&](int slice) {
    ring.template copy<kRowBlocks>(slice, slice < slices ? kRowBlocks + kCodes / 16 : 0, [=](int block) {
      const bool left = block < kRowBlocks;
      const std::int64_t row = left ? first_row / 16 + block : first_code / 16 + block - kRowBlocks;
      return (left ? upstream : codes) + block_at(row, slice, slices);
    });
  };

  const int rows_from = warp % Shape::kAcross * 2;  // blocks
  const int codes_from = warp / Shape::kAcross * Shape::kCodeBlocks;
  const bool busy = first_row + 16 * rows_from < field.count;
  float sums[2][2 * Shape::kCodeBlocks][4] = {};
  ring.begin();
  __syncthreads();
  copy_slice(0);
  copy_slice(1);
  for (int slice = 0; slice < slices; ++slice) {
    ring.wait(slice);
    __syncthreads();
    copy_slice(slice + 2);
    if (!busy) continue;
    const unsigned char* stage = ring.stage(slice);
    const Left left[2] = {load_left(stage + rows_from * kBlock), load_left(stage + (rows_from + 1) * kBlock)};
#pragma unroll
    for (int j = 0; j < Shape::kCodeBlocks; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Right right = load_right(stage + (kRowBlocks + codes_from + j) * kBlock, half);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float product[4];
          multiply<kProducts>(left[m], right, product);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][2 * j + half][i] += product[i];
        }
      }
    }
  }

  // D by rows, in the place of the slices, which all have been read
  __syncthreads();
  auto* d = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * Shape::kCodeBlocks; ++n) {
      float* to = d + (16 * (rows_from + m) + lane / 4) * kPitch + 16 * codes_from + 8 * n + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sums[m][n][0], sums[m][n][1]);
      *reinterpret_cast<float2*>(to + 8 * kPitch) = make_float2(sums[m][n][2], sums[m][n][3]);
    }
  }
  __syncthreads();
  const Numbers numbers = *numbers_in;
  const int code = first_code + 4 * lane;
  if (code >= field.codes) return;
  const int rows_here = static_cast<int>(min(static_cast<std::int64_t>(Shape::kRows), field.count - first_row));
#pragma unroll 2
  for (int r = warp; r < rows_here; r += kThreads / 32) {
    const float4 of_d = *reinterpret_cast<const float4*>(d + r * kPitch + 4 * lane);
    // with many rows nothing of P stays in the L2 cache until the next step, and the blocks should
    follow<(kRowBlocks > 2)>(field, optimiser, numbers, rows[first_row + r], first_row + r, code,
                             {{of_d.x, of_d.y, of_d.z, of_d.w}});
  }
}

constexpr int kOuterRows = 16;  // at a time

// dC = y^T dE of 64 codes and 256 channels, the codebook's gradient of a soft selection: over all rows in their order.
using Upstream = Ring<2, kSumSlices>;

struct OuterShared {
  unsigned char upstream[Upstream::kBytes];
  unsigned char weights[2][kSumRows / 16 * kBlock];
};

template <int kProducts>
__global__ void __launch_bounds__(kThreads, 2)
    outer(Field field, const unsigned char* upstream, const Row* rows, const Numbers* numbers_in, float* out) {
  OuterShared& shared = *dynamic_shared<OuterShared>();
  const Upstream ring{shared.upstream};
  Sums sums(field.channels, blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), first_code = static_cast<int>(blockIdx.x) * kSumRows;
  const int tiles = static_cast<int>((field.count + kOuterRows - 1) / kOuterRows);
  const auto copy_tile = [&](int tile) {
    ring.copy<1>(tile, sums.here,
                 [&](int block) { return upstream + block_at(tile, sums.column + block, sums.slices); });
  };
  // four codes of a row are a thread's
  const int row_here = thread / 16, quad = thread % 16;
  const auto soften = [&](int tile) {
    const std::int64_t row = static_cast<std::int64_t>(tile) * kOuterRows + row_here;
    Quad y{};
    if (row < field.count) {
      const Row of_row = rows[row];
      const std::int64_t code = first_code + 4 * quad;
      y = scores_of(field, numbers_in->draw, of_row.item, of_row.place, row, code, logits_of(field, row, code));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y.of[i] = exp_of((y.of[i] - of_row.score) * numbers_in->inverse_tau - of_row.log_denominator);
      }
    }
    store_parts(shared.weights[tile % 2] + quad / 4 * kBlock + place_in_plane(row_here, quad % 4 * 4), y);
  };
  ring.begin();
  __syncthreads();
  copy_tile(0);
  soften(0);
  for (int tile = 0; tile < tiles; ++tile) {
    ring.wait(tile);
    __syncthreads();
    if (tile + 1 < tiles) {
      copy_tile(tile + 1);
      soften(tile + 1);
    }
    const unsigned char* weights = shared.weights[tile % 2] + sums.rows_from / 16 * kBlock;
    const Left left[2] = {load_left_transposed(weights), load_left_transposed(weights + kBlock)};
    sums.multiply_stage<kProducts>(left, ring.stage(tile), [](float (&sum)[4], const float (&product)[4], int) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += product[i];
    });
  }
  sums.store(out + static_cast<std::int64_t>(first_code) * field.channels, field.codes - first_code, field.channels);
}

struct Scratch {
  Numbers* numbers;
  Row* rows;
  unsigned char *codes, *upstream;
  std::size_t bytes;
};

Scratch scratch_of(std::int64_t count, std::int64_t codes, std::int64_t channels, void* base) {
  Pieces pieces{static_cast<unsigned char*>(base)};
  Scratch scratch{};
  scratch.numbers = pieces.take<Numbers>(1);
  scratch.rows = pieces.take<Row>(count);
  scratch.codes = pieces.take<unsigned char>(plane_bytes(codes, channels));
  scratch.upstream = pieces.take<unsigned char>(plane_bytes(count, channels));
  scratch.bytes = pieces.used;
  return scratch;
}

template <int kRowBlocks>
Status launch_update(const Field& field, const Optimiser& optimiser, const Scratch& scratch, const Launch& launching) {
  const std::int64_t row_tiles = ceil_div(field.count, Tile<kRowBlocks>::kRows);
  const std::int64_t tiles = row_tiles * ceil_div(field.codes, kCodes);
  if (tiles > kMostBlocks) return {cudaErrorInvalidConfiguration, "gumbel_codebook update"};
  const Shape shape{dim3(static_cast<unsigned>(tiles)), dim3(kThreads), Tile<kRowBlocks>::kShared};
  return launch("gumbel_codebook update",
                launching.products == Products::kExact ? update<kRowBlocks, 6> : update<kRowBlocks, 3>, shape,
                launching.stream, field, optimiser, scratch.codes, scratch.upstream, scratch.rows, scratch.numbers,
                static_cast<unsigned>(row_tiles));
}

// What both entry points do, up to the update.
Status run(const float* upstream, const GumbelCodebook& args, const Optimiser& optimiser, const RowStats& row_stats,
           const Launch& launching, float* grad_codebook) {
  const Field field = field_of(args, launching);
  if (field.count == 0) {
    const auto bytes = static_cast<std::size_t>(args.codes * args.channels) * sizeof(float);
    return grad_codebook == nullptr ? Status{} : clear("gumbel_codebook clear", grad_codebook, bytes, launching.stream);
  }
  const Scratch scratch = scratch_of(field.count, args.codes, args.channels, launching.scratch);
  Status status = split(args.codebook, args.codes, args.channels, scratch.codes, launching.stream);
  if (status.code != 0) return status;
  status = split(upstream, field.count, args.channels, scratch.upstream, launching.stream);
  if (status.code != 0) return status;
  status =
      launch("gumbel_codebook row_terms", row_terms, ceil_div(field.count, kThreads / 32), kThreads, launching.stream,
             field, optimiser, args.codebook, upstream, row_stats, scratch.rows, scratch.numbers);
  if (status.code != 0) return status;
  if (grad_codebook != nullptr && args.channels != 0) {
    const Shape shape{dim3(static_cast<unsigned>(ceil_div(args.codes, kSumRows)), sum_columns(args.channels)),
                      dim3(kThreads), sizeof(OuterShared)};
    status = launch("gumbel_codebook outer", launching.products == Products::kExact ? outer<6> : outer<3>, shape,
                    launching.stream, field, scratch.upstream, scratch.rows, scratch.numbers, grad_codebook);
    if (status.code != 0) return status;
  }
  return field.count <= kFewRows ? launch_update<2>(field, optimiser, scratch, launching)
                                 : launch_update<8>(field, optimiser, scratch, launching);
}

}  // namespace

std::size_t gumbel_codebook_backward_scratch(std::int64_t problems, std::int64_t rows, std::int64_t codes,
                                             std::int64_t channels) {
  return scratch_of(problems * rows, codes, channels, nullptr).bytes;
}

Status gumbel_codebook_backward(const float* upstream, const GumbelCodebook& args, const RowStats& row_stats,
                                const Launch& launching, float* grad_logits, float* grad_codebook) {
  Optimiser optimiser{};
  optimiser.rule = kGradient;
  optimiser.out = grad_logits;
  optimiser.vector = args.codes % 4 == 0 && aligned(grad_logits);
  return run(upstream, args, optimiser, row_stats, launching, grad_codebook);
}

Status gumbel_codebook_step(const GumbelCodebook& args, const float* upstream, const Update& update,
                            const RowStats& row_stats, const Launch& launching, float* logits) {
  Optimiser optimiser{};
  optimiser.rule = update.first_moment == nullptr ? kDescent : kAdam;
  optimiser.out = logits;
  optimiser.first_moment = update.first_moment;
  optimiser.second_moment = update.second_moment;
  optimiser.lr = update.lr;
  optimiser.log_beta1 = std::log(update.beta1);  // -inf of 0: a correction of 1
  optimiser.log_beta2 = std::log(update.beta2);
  optimiser.step_count = static_cast<double>(update.step_count);
  optimiser.rest1 = static_cast<float>(1.0 - update.beta1);
  optimiser.beta2 = static_cast<float>(update.beta2);
  optimiser.rest2 = static_cast<float>(1.0 - update.beta2);
  optimiser.eps = static_cast<float>(update.eps);
  optimiser.anchor = update.anchor;
  optimiser.stay_penalty = update.stay_penalty;
  optimiser.vector =
      args.codes % 4 == 0 && aligned(logits) && aligned(update.first_moment) && aligned(update.second_moment);
  return run(upstream, args, optimiser, row_stats, launching, nullptr);
}

}  // namespace cuda
}  // namespace cortex_fast
