// What the operators' CUDA entry points share. They take addresses on the current device and a stream, launch there and
// return at once: no synchronisation and no allocation, so that they can be captured in a CUDA graph. Scratch memory is
// the caller's.
#pragma once

namespace cortex_fast {
namespace cuda {

using Stream = void*;  // cudaStream_t; null is the default stream

// What a launch came to: `error` is a cudaError_t, 0 where all went well, and `kernel` the name of what was launched.
// What goes wrong on the device later is told by the next synchronisation, as with any kernel.
struct Status {
  const char* kernel;
  int error;
};

constexpr Status kLaunched{nullptr, 0};

// CUDA's own words for an error.
const char* error_text(int error);

// Devices that the driver offers; 0 with `error` set where there is no driver or none of them.
int device_count(int* error);

}  // namespace cuda
}  // namespace cortex_fast
