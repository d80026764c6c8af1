// Kernels that try the stand-in itself: barriers, shuffles, votes. Called by tests/cuda/test_stand_in.py.
#include "launch.cuh"

namespace cc = cortex_fast::cuda;

namespace {

// The sum of a block's values, by halves in shared memory and then by shuffles.
__global__ void block_sums(const int* in, int* out) {
  int* shared = cc::dynamic_shared<int>();
  const unsigned mine = threadIdx.x;
  shared[mine] = in[blockIdx.x * blockDim.x + mine];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half >= 32; half /= 2) {
    if (mine < half) shared[mine] += shared[mine + half];
    __syncthreads();
  }
  if (mine >= 32) return;
  int sum = shared[mine];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
  if (mine == 0) out[blockIdx.x] = sum;
}

// Every variant of shuffle and vote, one row of out each.
__global__ void warp_functions(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* row = out + lane;
  const auto put = [&row](int value) {
    *row = value;
    row += 32;
  };
  put(__shfl_sync(0xFFFFFFFFu, lane, 3));
  put(__shfl_sync(0xFFFFFFFFu, lane, lane + 1, 8));
  put(__shfl_up_sync(0xFFFFFFFFu, lane, 3));
  put(__shfl_down_sync(0xFFFFFFFFu, lane, 3, 16));
  put(__shfl_xor_sync(0xFFFFFFFFu, lane, 5));
  put(static_cast<int>(__ballot_sync(0xFFFFFFFFu, lane % 3 == 0)));
  put(__any_sync(0xFFFFFFFFu, lane == 31) + 2 * __all_sync(0xFFFFFFFFu, lane < 31));
  const unsigned half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  put(__shfl_xor_sync(half, lane, 1));
  if (lane < 16) __syncwarp(half);
  put(static_cast<int>(__reduce_add_sync(half, lane) + 1000 * __reduce_max_sync(half, lane)));
}

// The first half of the warps waits where the others never come.
__global__ void stuck(int*) {
  if (threadIdx.x < 32) {
    __syncwarp();
  } else if (threadIdx.x == 32) {
    __syncwarp(0x3u << (threadIdx.x % 32));
  } else {
    __syncthreads();
  }
}

__global__ void beyond_shared(int* out) { *out = cc::dynamic_shared<int>()[threadIdx.x + 8]; }

}  // namespace

extern "C" {

int block_sums_of(const int* in, int* out, int blocks, int threads) {
  return cc::launch("block_sums", block_sums, {dim3(blocks), dim3(threads), threads * sizeof(int)}, nullptr, in, out)
      .code;
}
int warp_functions_of(int* out) {
  return cc::launch("warp_functions", warp_functions, {dim3(1), dim3(32)}, nullptr, out).code;
}
int stuck_of(int* out) { return cc::launch("stuck", stuck, {dim3(1), dim3(64)}, nullptr, out).code; }
int beyond_shared_of(int* out) {
  return cc::launch("beyond_shared", beyond_shared, {dim3(1), dim3(32), 32}, nullptr, out).code;
}

}  // extern "C"
