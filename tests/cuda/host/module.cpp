// The functions of cortex_fast._native.cuda, on the stand-in for a GPU.
#include "cuda.cpp"  // in one piece with this file: pybind11's headers take longest

namespace cortex_fast {
namespace cuda {

const char* error_text(int) { return "the stand-in for a GPU refuses such a launch"; }

int device_count(const char**) { return 1; }

}  // namespace cuda
}  // namespace cortex_fast

PYBIND11_MODULE(cuda_on_host, module) { define_cuda(module); }
