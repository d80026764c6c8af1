// CUDA's errors and devices: host code only, which does not need nvcc.
#include <cuda_runtime_api.h>

#include "cortex_fast/cuda.h"

namespace cortex_fast {
namespace cuda {

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int device_count(const char** why) {
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);  // 0 without a driver, which cudaGetDeviceCount reports as too old a driver
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) {
    *why = "its driver offers no device";
    return count;
  }
  (void)cudaGetLastError();
  *why = driver == 0 ? "no CUDA driver is installed" : cudaGetErrorString(error);
  return 0;
}

}  // namespace cuda
}  // namespace cortex_fast
