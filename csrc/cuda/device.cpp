// What CUDA says of errors and devices; of the host alone, so no work for nvcc.
#include <cuda_runtime_api.h>

#include "cortex_fast/cuda.h"

namespace cortex_fast {
namespace cuda {

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int device_count(const char** why) {
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);  // 0 where there is none, which cudaGetDeviceCount calls too old a one
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
