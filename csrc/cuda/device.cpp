// What CUDA says of errors and devices; of the host alone, so no work for nvcc.
#include <cuda_runtime_api.h>

#include "cortex_fast/cuda.h"

namespace cortex_fast {
namespace cuda {

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int device_count(int* count) {
  *count = 0;  // an error leaves it unwritten
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return static_cast<int>(error);
}

}  // namespace cuda
}  // namespace cortex_fast
