// How kernels are launched, and what they need beyond plain CUDA C++. Only this file and tiles.cuh (matrix units and
// asynchronous copies) differ between nvcc and the tests' stand-in for a GPU (tests/cuda/host), which both compile
// every .cu file. So kernels are launched by `launch`, never by <<<>>>, and `dynamic_shared` gives dynamic shared
// memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#if !defined(__CUDACC__)
#include "cuda_on_host.h"
#endif

#include "cortex_fast/cuda.h"

namespace cortex_fast {
namespace cuda {

struct Shape {
  dim3 grid, block;
  std::size_t shared_bytes = 0;  // dynamic; above 48 KB the launch asks for it
};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline Status status_of(const char* kernel, int code) { return {code, code == 0 ? nullptr : kernel}; }

#if defined(__CUDACC__)

// The block's dynamic shared memory; every kernel sees the same bytes, as an array of its type T.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char cortex_fast_shared[];
  return reinterpret_cast<T*>(cortex_fast_shared);
}

template <typename... Parameters, typename... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), const Shape& shape, void* stream,
              Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
  }
  if (error == cudaSuccess) {
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  }
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported here: clear it
  return status_of(name, error);
}

// Writes zeros; a separate node of a graph.
inline Status clear(const char* name, void* memory, std::size_t bytes, void* stream) {
  return status_of(name, cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#else

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(cuda_on_host::dynamic_shared());
}

template <typename... Parameters, typename... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), const Shape& shape, void*, Arguments&&... arguments) {
  return status_of(name, cuda_on_host::run(shape.grid, shape.block, shape.shared_bytes,
                                           [&] { kernel(static_cast<Parameters>(arguments)...); }));
}

inline Status clear(const char* name, void* memory, std::size_t bytes, void*) {
  std::memset(memory, 0, bytes);
  return status_of(name, cudaSuccess);
}

#endif

// Up to 2^31 - 1 blocks along x; no blocks launch nothing.
template <typename... Parameters, typename... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, void* stream,
              Arguments&&... arguments) {
  if (blocks == 0) return {};
  if (blocks < 0 || blocks > 2147483647) return status_of(name, cudaErrorInvalidConfiguration);
  const Shape shape{dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads))};
  return launch(name, kernel, shape, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace cuda
}  // namespace cortex_fast
