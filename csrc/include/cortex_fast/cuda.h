// Shared by the operators' CUDA entry points. They take addresses on the current device and a stream, launch there and
// return at once, without synchronisation or allocation, so that they can be captured in a CUDA graph. The caller owns
// scratch memory. A stream is a cudaStream_t; null is the default stream.
#pragma once

namespace cortex_fast {
namespace cuda {

// Whether a call could launch its kernels. The next synchronisation reports later errors on the device, as with any
// kernel.
struct Status {
  int code = 0;                  // a cudaError_t; 0 is success
  const char* kernel = nullptr;  // the one whose launch failed
};

// CUDA's description of an error.
const char* error_text(int code);

// The number of devices that the driver offers; if it is 0, `why` is the reason.
int device_count(const char** why);

}  // namespace cuda
}  // namespace cortex_fast
