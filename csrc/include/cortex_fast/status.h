// What a call that launches kernels says of them.
#pragma once

namespace cortex_fast {
namespace cuda {

struct Status {
  int code = 0;                  // a cudaError_t; 0 is success
  const char* kernel = nullptr;  // the one whose launch failed
};

}  // namespace cuda
}  // namespace cortex_fast
