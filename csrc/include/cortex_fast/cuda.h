// What the operators' CUDA entry points share. They take addresses on the current device and a stream, launch there and
// return at once: no synchronisation and no allocation, so that they can be captured in a CUDA graph. Scratch memory is
// the caller's. A stream is a cudaStream_t; null is the default stream.
#pragma once

namespace cortex_fast {
namespace cuda {

// What a call that launches kernels says of them. What goes wrong on the device later is told by the next
// synchronisation, as with any kernel.
struct Status {
  int code = 0;                  // a cudaError_t; 0 is success
  const char* kernel = nullptr;  // the one whose launch failed
};

// CUDA's own words for an error.
const char* error_text(int code);

// How many devices the driver offers; where it is 0, `why` says why.
int device_count(const char** why);

}  // namespace cuda
}  // namespace cortex_fast
