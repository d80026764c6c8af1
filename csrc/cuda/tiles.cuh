// What the Gumbel kernels need of a GPU beyond CUDA C++'s plain part: matrix units and asynchronous copies, each with a
// branch for the tests' stand-in for a GPU.
//
// Products in float32's precision come from bfloat16 units (mma.sync m16n8k16: every architecture from sm_80 on). A
// float is exactly the sum of three bfloat16 of 8 bits each: high, middle and low. Two such sums have nine products, of
// which the six largest are taken; the others are below 2^-24 of the product. The units add with truncation, so a chain
// of them starts from 0 and takes the small products first. The sum over chains is float32's own. sm_90's wgmma has
// nearly twice the rate and needs no loads of operands, but its order of accumulation can only be tried on a GPU, so it
// waits for one.
//
// Blocks. The unit of storage is 16 x 16 numbers in three planes, kBlock bytes: each plane is four 8 x 8 matrices of
// 128 bytes, by rows, in the order (upper left, lower left, upper right, lower right). That is what one ldmatrix.x4
// takes, lane i the bytes from 16 i on, without bank conflicts; as the left operand, or transposed as the right one,
// or the other way round. It is also the layout without swizzle of wgmma's shared memory. In global memory eight blocks
// that lie one below the other come in a row, then those to the right of them (`block_at`).
//
// Copies. A Ring is a few stages of blocks on their way from global to shared memory: from sm_90 on by bulk copies of
// whole blocks (the TMA unit; an mbarrier a stage), before that by cp.async, 16 bytes a thread.
#pragma once

#include "cortex_fast/portable.h"
#include "launch.cuh"
#if !defined(__CUDACC__)
#include "tiles_on_host.h"
#endif

namespace cortex_fast {
namespace cuda {

constexpr int kPlanes = 3;
constexpr int kPlane = 16 * 16 * 2;  // bytes
constexpr int kBlock = kPlanes * kPlane;

constexpr int kPanel = 8;  // blocks one below the other

// Where block (row, column) of a matrix of `columns` blocks a row starts.
__host__ __device__ __forceinline__ std::int64_t block_at(std::int64_t row, int column, int columns) {
  return ((row / kPanel * columns + column) * kPanel + row % kPanel) * kBlock;
}

// Two floats' bfloat16 parts, the first in the low half of each word.
struct Parts {
  std::uint32_t of[kPlanes];
};

__device__ __forceinline__ std::uint32_t round_pair(float first, float second) {
#if defined(__CUDACC__)
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
#else
  return tiles_on_host::bfloat16_of(first) | tiles_on_host::bfloat16_of(second) << 16;
#endif
}

__device__ __forceinline__ Parts split_pair(float first, float second) {
  Parts parts;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    parts.of[plane] = round_pair(first, second);
    first -= float_of(parts.of[plane] << 16);
    second -= float_of(parts.of[plane] & 0xFFFF0000u);
  }
  return parts;
}

// Where in a plane the numbers (row, column), (row, column + 1), ... of a block are, up to the next multiple of 8.
__device__ __forceinline__ int place_in_plane(int row, int column) {
  return ((row >> 3) + 2 * (column >> 3)) * 128 + (row & 7) * 16 + (column & 7) * 2;
}

// All four of a plane's matrices in shared memory, or two that are `apart` bytes from each other, for a whole warp:
// word j of lane i is of matrix j row i / 4, columns 2 (i % 4) and the next; transposed, column i / 4, rows 2 (i % 4)
// and the next.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(const unsigned char* first, std::uint32_t (&words)[4]) {
#if defined(__CUDACC__)
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(first + (threadIdx.x & 31) * 16));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(at)
                 : "memory");
  }
#else
  tiles_on_host::load_matrices(first, 128, kTransposed, 4, words);
#endif
}

template <bool kTransposed>
__device__ __forceinline__ void load_matrices(const unsigned char* first, int apart, std::uint32_t (&words)[2]) {
#if defined(__CUDACC__)
  const unsigned char* row = first + (threadIdx.x & 7) * 16 + (threadIdx.x >> 3 & 1) * apart;
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(at)
                 : "memory");
  }
#else
  tiles_on_host::load_matrices(first, static_cast<unsigned>(apart), kTransposed, 2, words);
#endif
}

// The operands of one product of 16 x 16 by 16 x 8, as mma.sync has them among the lanes.
struct Left {
  std::uint32_t words[kPlanes][4];
};
struct Right {
  std::uint32_t words[kPlanes][2];
};

// A block of [rows, k] as the left operand.
__device__ __forceinline__ Left load_left(const unsigned char* block) {
  Left left;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) load_matrices<false>(block + plane * kPlane, left.words[plane]);
  return left;
}

// A block of [k, rows] as the left operand.
__device__ __forceinline__ Left load_left_transposed(const unsigned char* block) {
  Left left;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    std::uint32_t words[4];
    load_matrices<true>(block + plane * kPlane, words);
    left.words[plane][0] = words[0];
    left.words[plane][1] = words[2];
    left.words[plane][2] = words[1];
    left.words[plane][3] = words[3];
  }
  return left;
}

// Half of a block of [columns, k], its first or last eight columns, as the right operand.
__device__ __forceinline__ Right load_right(const unsigned char* block, int half) {
  Right right;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    load_matrices<false>(block + plane * kPlane + half * 128, 256, right.words[plane]);
  }
  return right;
}

// Half of a block of [k, columns] as the right operand.
__device__ __forceinline__ Right load_right_transposed(const unsigned char* block, int half) {
  Right right;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    load_matrices<true>(block + plane * kPlane + half * 256, 128, right.words[plane]);
  }
  return right;
}

#if defined(__CUDACC__)
__device__ __forceinline__ void multiply_plane(float (&sum)[4], const std::uint32_t (&left)[4],
                                               const std::uint32_t (&right)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
#endif

// The product of a warp's operands. sum[0], sum[1] of lane i: row i / 4, columns 2 (i % 4) and the next; sum[2],
// sum[3]: eight rows below.
template <int kProducts>
__device__ __forceinline__ void multiply(const Left& left, const Right& right, float (&sum)[4]) {
  static_assert(kProducts == 3 || kProducts == 6);
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
  if (kProducts == 6) {
    multiply_plane(sum, left.words[2], right.words[0]);
    multiply_plane(sum, left.words[0], right.words[2]);
    multiply_plane(sum, left.words[1], right.words[1]);
  }
  multiply_plane(sum, left.words[1], right.words[0]);
  multiply_plane(sum, left.words[0], right.words[1]);
  multiply_plane(sum, left.words[0], right.words[0]);
#else
  tiles_on_host::multiply(kProducts, left.words, right.words, sum);
#endif
}

// kStages stages of at most kBlocks blocks, in at most 32 runs, copied in rounds 0, 1, ... All threads of the block
// call everything. A round's stage is that of the round kStages before; it may be copied to when all threads have read
// that one, and passed a barrier since. Before the first copy and after each wait there is a __syncthreads().
template <int kStages, int kBlocks>
struct Ring {
  static constexpr int kStageBytes = kBlocks * kBlock;
  static constexpr int kBytes = kStages * kStageBytes + 16 * kStages;  // of shared memory, from a multiple of 16 on

  unsigned char* memory;

  __device__ __forceinline__ unsigned char* stage(int round) const { return memory + round % kStages * kStageBytes; }

  __device__ __forceinline__ void begin() const {
#if !defined(__CUDACC__)
    tiles_on_host::begin_ring(memory, kStages);
#elif __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(stage)) : "memory");
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
#endif
  }

  // Block i of the stage is copied from from(i); of each kRun blocks, the first's place a multiple of it, the sources
  // lie one after the other. Without blocks the round is passed over, and not waited for.
  template <int kRun, typename From>
  __device__ __forceinline__ void copy(int round, int blocks, const From& from) const {
#if !defined(__CUDACC__)
    for (int i = 0; i < blocks; i += kRun) {
      tiles_on_host::copy(memory, round, i / kRun, stage(round) + i * kBlock, from(i), kRun * kBlock,
                          i + kRun >= blocks);
    }
    if (blocks == 0) tiles_on_host::pass(memory, round);
#elif __CUDA_ARCH__ >= 900
    if (threadIdx.x >= 32 || blocks == 0) return;
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier(round % kStages)),
                   "r"(blocks * kBlock)
                   : "memory");
    }
    __syncwarp();
    const int block = static_cast<int>(threadIdx.x) * kRun;
    if (block < blocks) {
      const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(stage(round) + block * kBlock));
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                   "l"(__cvta_generic_to_global(from(block))), "r"(kRun * kBlock), "r"(barrier(round % kStages))
                   : "memory");
    }
#else
    constexpr int kParts = kBlock / 16;
    for (int i = static_cast<int>(threadIdx.x); i < blocks * kParts; i += static_cast<int>(blockDim.x)) {
      const unsigned char* source = from(i / kParts) + i % kParts * 16;
      const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(stage(round) + i * 16));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(source))
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // Waits for the round's copies, at least those that this thread began; the copies of round + 1 to round + kStages - 2
  // may be under way.
  __device__ __forceinline__ void wait(int round) const {
#if !defined(__CUDACC__)
    tiles_on_host::wait(memory, round);
#elif __CUDA_ARCH__ >= 900
    std::uint32_t done;
    do {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barrier(round % kStages)), "r"(round / kStages & 1)
          : "memory");
    } while (done == 0);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
#endif
  }

 private:
#if defined(__CUDACC__)
  __device__ __forceinline__ std::uint32_t barrier(int stage) const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(memory + kStages * kStageBytes + 16 * stage));
  }
#endif
};

}  // namespace cuda
}  // namespace cortex_fast
