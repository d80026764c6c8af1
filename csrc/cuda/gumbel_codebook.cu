// Gumbel-Softmax selection of codebook rows, forward: C[argmax(P + g)] or y C, y = softmax((P + g) / tau).
//
// Bound. `select` (hard, without row statistics): P once, 4 bytes an element, and some 25 instructions for its random
// words; logarithms only where a bound says that a code could win. On an H100 the bytes take longer. `scan` (with y C):
// 2 d operations an element, each as six products of bfloat16, beside about 90 instructions for the noise, the softmax
// and its split. At d = 256 and 16,000 rows of 16,384 codes that is 0.8 TFLOP of bfloat16: at two thirds of an H100's
// rate by mma.sync 1.3 ms, where the bytes take 0.4 ms. Predicted, not measured: 1.5 to 2 ms.
//
// As in attention, P + g are the scores and the codebook the values: a block of 64 rows goes over a part of the codes,
// 16 at a time, with running largest scores, denominators and y C. The weights of the next 16 are computed while the
// matrix units take the ones before: one barrier a tile. Few rows are split over their codes into parts, and `combine`
// merges these in their order: no atomics, the same bits every time, on every GPU.
#include "gumbel_tiles.cuh"

namespace cortex_fast {
namespace cuda {
namespace {

constexpr int kSelectCodes = 4 * kThreads;  // that a block of `select` takes at a time
constexpr int kScanCodes = 16;
constexpr int kSelectBlocks = 2048, kScanBlocks = 264;  // as many as keep a large GPU busy
constexpr int kStages = 2;

// A row's part of the codes: its largest score and that code, and the denominator relative to it.
struct Part {
  float score;
  int code;
  float denominator, unused;
};

// Of a row and a part of the codes: the largest score and its code.
__global__ void __launch_bounds__(kThreads) select(Field field, std::int64_t part, Part* parts) {
  constexpr float kSlack = 1e-4f;  // of a score that bounds others, for rounding
  __shared__ Best bests[kThreads / 32];
  const std::int64_t row = blockIdx.x, begin = blockIdx.y * part;
  const std::int64_t end = min(begin + part, field.codes);
  const std::uint32_t draw = draw_of(field);
  const auto item = static_cast<std::uint32_t>(field.item_ids[row / field.rows]);
  const auto place = static_cast<std::uint32_t>(row % field.rows);
  const float* from_row = field.logits + row * field.codes;
  const std::int64_t start = begin + 4 * static_cast<std::int64_t>(threadIdx.x);
  Best best{kLowest, static_cast<int>(start)};
  float warp_best = kLowest;
  for (std::int64_t code = start; code - start + begin < end; code += kSelectCodes) {
    Quad scores = load_quad(from_row, code, field.codes, field.vector, kLowest);
#pragma unroll
    for (int i = 0; i < 4; ++i) scores.of[i] = ranked(scores.of[i]);
    bool might = true;
    Counter<std::uint32_t> words{};
    if (field.gumbel == nullptr) {
      // the smallest word has the largest Gumbel
      words = words_of(field, draw, item, place, code);
      const float top = fmaxf(fmaxf(scores.of[0], scores.of[1]), fmaxf(scores.of[2], scores.of[3]));
      const std::uint32_t least = min(min(words.words[0], words.words[1]), min(words.words[2], words.words[3]));
      const float bound = top + gumbel_of(least);
      might = bound + kSlack * (1.0f + fabsf(bound)) > warp_best;
    }
    if (__any_sync(0xFFFFFFFFu, might)) {
      const Quad noise = field.gumbel == nullptr
                             ? Quad{}
                             : load_quad(field.gumbel + row * field.codes, code, field.codes, field.vector, 0.0f);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float g = field.gumbel == nullptr ? gumbel_of(words.words[i]) : noise.of[i];
        const float score = ranked(scores.of[i] + g);
        if (score > best.score) best = {score, static_cast<int>(code) + i};
      }
      warp_best = best.score;
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        warp_best = fmaxf(warp_best, __shfl_xor_sync(0xFFFFFFFFu, warp_best, lanes));
      }
    }
  }
  best = best_of_lanes<32>(best);
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) best = better(best, bests[warp]);
    parts[blockIdx.y * field.count + row] = {best.score, best.code, 0.0f, 0.0f};
  }
}

// Shared memory of `scan`: codes on their way, the weights of two tiles as blocks, how each row's sums fade, and what a
// thread knows of its row, which would else take the registers that the sums need.
using Codes = Ring<kStages, kSumSlices>;
constexpr int kWeightBytes = kSumRows / 16 * kBlock;

struct State {
  std::int64_t row;
  std::uint32_t item, place, draw;
  float inverse_tau, score, denominator;
};

struct ScanShared {
  unsigned char codes[Codes::kBytes];
  unsigned char weights[2][kWeightBytes];
  float fades[2][kSumRows];
  State states[kThreads];
  int best[kThreads];
};

// Of 64 rows, a part of the codes and 256 channels: largest score and its code, denominator, y C relative to it.
template <int kProducts>
__global__ void __launch_bounds__(kThreads, 2)
    scan(Field field, const unsigned char* planes, int part, Part* parts, float* soft) {
  ScanShared& shared = *dynamic_shared<ScanShared>();
  const Codes ring{shared.codes};

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  Sums sums(field.channels, blockIdx.z);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kSumRows;
  const int begin = static_cast<int>(blockIdx.y) * part;
  const int tiles = (min(part, static_cast<int>(field.codes) - begin) + kScanCodes - 1) / kScanCodes;

  const auto copy_tile = [&](int tile) {
    const std::int64_t row = begin / 16 + tile;
    ring.copy<1>(tile, sums.here, [&](int block) { return planes + block_at(row, sums.column + block, sums.slices); });
  };

  // four codes of one row are this thread's
  const int row_here = thread / 4, quad = thread % 4;
  {
    State state{};
    state.row = min(first_row + row_here, field.count - 1);  // past the last: its numbers, not stored
    state.item = static_cast<std::uint32_t>(field.item_ids[state.row / field.rows]);
    state.place = static_cast<std::uint32_t>(state.row % field.rows);
    state.draw = draw_of(field);
    state.inverse_tau = inverse_tau(field);
    state.score = kLowest;
    shared.states[thread] = state;
    shared.best[thread] = 0;
  }
  const auto soften = [&](int tile) {
    State& state = shared.states[thread];
    const int code = begin + tile * kScanCodes + 4 * quad;
    Quad scores =
        scores_of(field, state.draw, state.item, state.place, state.row, code, logits_of(field, state.row, code));
    Best largest{ranked(scores.of[0]), code};
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      const float score = ranked(scores.of[i]);
      if (score > largest.score) largest = {score, code + i};
    }
    largest = best_of_lanes<4>(largest);
    const float before = state.score;
    float top = before;
    if (largest.score > before) {
      state.score = top = largest.score;
      shared.best[thread] = largest.code;
    }
    top = top == kLowest ? 0.0f : top;
    const float fade = exp_of((before - top) * state.inverse_tau);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores.of[i] = exp_of((scores.of[i] - top) * state.inverse_tau);
      sum += scores.of[i];
    }
    state.denominator = multiply_add(state.denominator, fade, sum);
    store_parts(shared.weights[tile % 2] + row_here / 16 * kBlock + place_in_plane(row_here % 16, 4 * quad), scores);
    if (quad == 0) shared.fades[tile % 2][row_here] = fade;
  };

  const auto add = [&](int tile) {
    const unsigned char* of_tile = shared.weights[tile % 2] + sums.rows_from / 16 * kBlock;
    const Left left[2] = {load_left(of_tile), load_left(of_tile + kBlock)};
    const float* fade = shared.fades[tile % 2] + sums.rows_from + lane / 4;
    const float fade_of[2][2] = {{fade[0], fade[8]}, {fade[16], fade[24]}};
    sums.multiply_stage<kProducts>(left, ring.stage(tile), [&](float (&sum)[4], const float (&product)[4], int m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = multiply_add(sum[i], fade_of[m][i / 2], product[i]);
    });
  };

  ring.begin();
  __syncthreads();
  copy_tile(0);
  soften(0);
  const bool busy = first_row + sums.rows_from < field.count;  // of the warp's rows at least one exists
  for (int tile = 0; tile < tiles; ++tile) {
    if (sums.here > 0) ring.wait(tile);  // there may be no channels, and still an index
    __syncthreads();
    if (tile + 1 < tiles) {
      copy_tile(tile + 1);
      soften(tile + 1);
    }
    if (busy) add(tile);
  }

  const State& state = shared.states[thread];
  const float denominator = sum_of_lanes<4>(state.denominator);
  const std::int64_t of_part = blockIdx.y * field.count;
  if (first_row + row_here < field.count && quad == 0 && sums.column == 0) {
    parts[of_part + state.row] = {state.score, shared.best[thread], denominator, 0.0f};
  }
  sums.store(soft + (of_part + first_row) * field.channels, field.count - first_row, field.channels);
}

constexpr int kCombineChannels = 128, kCombineWarps = 8;

// A row's parts merged: its index, 128 channels of its embedding, and its statistics. Each warp takes every
// blockDim / 32-th part, four neighbouring channels a lane.
template <bool kSoft>
__global__ void combine(Field field, const float* codebook, bool hard, int part_count, const Part* parts,
                        const float* soft, float* embedding, RowStats row_stats) {
  __shared__ float shares[kCombineWarps][kCombineChannels];
  __shared__ float denominators[kCombineWarps];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const std::int64_t row = blockIdx.x;
  const int channel = static_cast<int>(blockIdx.y) * kCombineChannels + 4 * lane;
  Best best{kLowest, 0};
  for (int i = lane; i < part_count; i += 32) {
    const Part& part = parts[i * field.count + row];
    // of a part without a score above -inf the code means nothing
    if (part.score > best.score) best = {part.score, part.code};
  }
  best = best_of_lanes<32>(best);
  const float* selected = codebook + static_cast<std::int64_t>(best.code) * field.channels;
  if (threadIdx.x == 0 && blockIdx.y == 0) row_stats.selected[row] = best.code;
  float sums[4] = {}, denominator = 0.0f;
  if (kSoft) {
    const float inverse = inverse_tau(field), top = best.score == kLowest ? 0.0f : best.score;
    for (int number = warp; number < part_count; number += warps) {
      const Part part = parts[number * field.count + row];
      const float weight = exp_of((part.score - top) * inverse);
      const float* from = soft + (number * field.count + row) * field.channels;
      denominator = multiply_add(weight, part.denominator, denominator);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (channel + i < field.channels) sums[i] = multiply_add(weight, from[channel + i], sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) shares[warp][4 * lane + i] = sums[i];
    if (lane == 0) denominators[warp] = denominator;
    __syncthreads();
    if (warp != 0) return;
    for (int other = 1; other < warps; ++other) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += shares[other][4 * lane + i];
      denominator += denominators[other];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (channel + i >= field.channels) break;
      // a settled row: all others together are below the last bit of 1
      sums[i] = denominator == 1.0f ? selected[channel + i] : sums[i] / denominator;
      row_stats.soft_embedding[row * field.channels + channel + i] = sums[i];
    }
    if (threadIdx.x == 0 && blockIdx.y == 0) {
      row_stats.largest_score[row] = best.score;
      row_stats.log_denominator[row] = denominator != denominator ? denominator : log_of(denominator);
    }
  }
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (channel + i >= field.channels) break;
    embedding[row * field.channels + channel + i] = hard ? selected[channel + i] : sums[i];
  }
}

// A thread has eight neighbouring channels of a row; grid.y and a warp's lanes go over a block's rows and halves.
__global__ void __launch_bounds__(kThreads)
    split_rows(const float* from, std::int64_t rows, int channels, std::int64_t eights, unsigned char* to) {
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= eights) return;
  const int slices = (channels + 15) / 16, inside = static_cast<int>(number % 32);
  const std::int64_t block = number / 32, panel = block / kPanel / slices;
  const std::int64_t row = (panel * kPanel + block % kPanel) * 16 + inside / 2;
  const int channel = static_cast<int>(block / kPanel % slices) * 16 + inside % 2 * 8;
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = row < rows && channel + i < channels ? from[row * channels + channel + i] : 0.0f;
  }
  Parts parts[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[i] = split_pair(values[2 * i], values[2 * i + 1]);
  unsigned char* here = to + block * kBlock + place_in_plane(inside / 2, inside % 2 * 8);
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    *reinterpret_cast<uint4*>(here + plane * kPlane) =
        make_uint4(parts[0].of[plane], parts[1].of[plane], parts[2].of[plane], parts[3].of[plane]);
  }
}

// In how many parts the codes are taken, and how many codes a part has, of `blocks` for each part: as many as are
// wanted. By the sizes alone, so that every GPU gives the same bits.
struct Split {
  std::int64_t parts, codes;
};

Split split_of(std::int64_t codes, std::int64_t tile, std::int64_t blocks, std::int64_t wanted, std::int64_t least) {
  const std::int64_t tiles = ceil_div(codes, tile), most = ceil_div(wanted, blocks < 1 ? 1 : blocks);
  std::int64_t parts = ceil_div(tiles, least);
  parts = parts < most ? parts : most;
  const std::int64_t tiles_of_part = ceil_div(tiles, parts);
  return {ceil_div(tiles, tiles_of_part), tiles_of_part * tile};
}

Split select_split(std::int64_t count, std::int64_t codes) {
  return split_of(codes, kSelectCodes, count, kSelectBlocks, 1);
}

Split scan_split(std::int64_t count, std::int64_t codes, std::int64_t channels) {
  const std::int64_t blocks = ceil_div(count, kSumRows) * sum_columns(channels);
  return split_of(codes, kScanCodes, blocks, kScanBlocks, 4);
}

struct Scratch {
  Part* parts;
  float* soft;
  unsigned char* planes;
  std::size_t bytes;
};

Scratch scratch_of(std::int64_t count, std::int64_t codes, std::int64_t channels, bool soft, void* base) {
  const std::int64_t parts = soft ? scan_split(count, codes, channels).parts : select_split(count, codes).parts;
  Pieces pieces{static_cast<unsigned char*>(base)};
  Scratch scratch{};
  scratch.parts = pieces.take<Part>(parts * count);
  scratch.soft = pieces.take<float>(soft ? parts * count * channels : 0);
  scratch.planes = pieces.take<unsigned char>(soft ? plane_bytes(codes, channels) : 0);
  scratch.bytes = pieces.used;
  return scratch;
}

unsigned number(std::int64_t value) { return static_cast<unsigned>(value); }

}  // namespace

Status split(const float* from, std::int64_t rows, std::int64_t channels, unsigned char* to, void* stream) {
  const std::int64_t eights = plane_bytes(rows, channels) / kBlock * 32;
  if (eights == 0) return {};
  return launch("gumbel_codebook split", split_rows, ceil_div(eights, kThreads), kThreads, stream, from, rows, channels,
                eights, to);
}

std::size_t gumbel_codebook_scratch(std::int64_t problems, std::int64_t rows, std::int64_t codes, std::int64_t channels,
                                    bool with_row_stats) {
  return scratch_of(problems * rows, codes, channels, with_row_stats, nullptr).bytes;
}

Status gumbel_codebook(const GumbelCodebook& args, const Launch& launching, float* embedding,
                       const RowStats& row_stats) {
  const Field field = field_of(args, launching);
  const bool soft = row_stats.largest_score != nullptr;
  if (field.count == 0) return {};
  if (!soft && !args.hard) return {cudaErrorInvalidValue, "gumbel_codebook"};
  if (field.count > kMostBlocks) return {cudaErrorInvalidConfiguration, "gumbel_codebook"};
  const Scratch scratch = scratch_of(field.count, args.codes, args.channels, soft, launching.scratch);
  const Split split_codes =
      soft ? scan_split(field.count, args.codes, args.channels) : select_split(field.count, args.codes);
  Status status;
  if (soft) {
    status = split(args.codebook, args.codes, args.channels, scratch.planes, launching.stream);
    if (status.code != 0) return status;
    const Shape shape{
        dim3(number(ceil_div(field.count, kSumRows)), number(split_codes.parts), sum_columns(args.channels)),
        dim3(kThreads), sizeof(ScanShared)};
    status = launch("gumbel_codebook scan", launching.products == Products::kExact ? scan<6> : scan<3>, shape,
                    launching.stream, field, scratch.planes, static_cast<int>(split_codes.codes), scratch.parts,
                    scratch.soft);
  } else {
    status =
        launch("gumbel_codebook select", select, {dim3(number(field.count), number(split_codes.parts)), dim3(kThreads)},
               launching.stream, field, split_codes.codes, scratch.parts);
  }
  if (status.code != 0) return status;
  const std::int64_t columns = args.channels == 0 ? 1 : ceil_div(args.channels, kCombineChannels);
  const std::int64_t warps = soft ? (split_codes.parts < kCombineWarps ? split_codes.parts : kCombineWarps) : 1;
  return launch("gumbel_codebook combine", soft ? combine<true> : combine<false>,
                {dim3(number(field.count), number(columns)), dim3(number(32 * warps))}, launching.stream, field,
                args.codebook, args.hard, static_cast<int>(split_codes.parts), scratch.parts, scratch.soft, embedding,
                row_stats);
}

}  // namespace cuda
}  // namespace cortex_fast
