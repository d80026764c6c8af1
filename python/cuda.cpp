// cortex_fast._native.cuda: the core's CUDA functions. The caller has made the tensors' device the current one, and
// keeps their memory until the stream has passed the call. Arguments are ordered as in module.cpp; scratch memory comes
// before the results, the stream last.
#include "cortex_fast/cuda.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "cortex_fast/gumbel_codebook_cuda.h"
#include "cortex_fast/smoothgrad_noise_cuda.h"
#include "cortex_fast/token_saliency_cuda.h"
#include "module.h"

namespace py = pybind11;
namespace cuda = cortex_fast::cuda;

namespace {

void check(const cuda::Status& status) {
  if (status.code == 0) return;
  throw std::runtime_error(std::string("the CUDA kernel ") + status.kernel +
                           " was not launched: " + cuda::error_text(status.code));
}

// The number of devices, and the reason if there are none.
std::pair<int, std::string> devices() {
  const char* why = "";
  const int count = cuda::device_count(&why);
  return {count, why};
}

// sizes are batch, channels, positions.
template <typename T>
void smoothgrad_noise(Address x, Address sigma, std::int64_t num_samples, std::uint64_t seed, Address item_ids,
                      bool antithetic, std::int64_t first_sample, Address normals,
                      const std::array<std::int64_t, 3>& sizes, Address out, Address stream) {
  const cuda::NoisyCopies<T> args{pointer<const T>(x),
                                  pointer<const float>(sigma),
                                  num_samples,
                                  seed,
                                  pointer<const std::int64_t>(item_ids),
                                  antithetic,
                                  first_sample,
                                  pointer<const float>(normals),
                                  sizes[0],
                                  sizes[1],
                                  sizes[2]};
  check(cuda::smoothgrad_noise(args, pointer<T>(out), pointer<void>(stream)));
}

template <typename T>
void define_smoothgrad_noise(py::module_& module, const char* name) {
  module.def(name, &smoothgrad_noise<T>, py::kw_only(), py::arg("x"), py::arg("sigma"), py::arg("num_samples"),
             py::arg("seed"), py::arg("item_ids"), py::arg("antithetic"), py::arg("first_sample"), py::arg("normals"),
             py::arg("sizes"), py::arg("out"), py::arg("stream"));
}

cuda::Token token_of(const std::string& name) {
  if (name == "uint8") return cuda::Token::kUint8;
  if (name == "int16") return cuda::Token::kInt16;
  if (name == "uint16") return cuda::Token::kUint16;
  if (name == "int32") return cuda::Token::kInt32;
  if (name == "int64") return cuda::Token::kInt64;
  throw std::invalid_argument("type: expected an integer's name, got '" + name + "'");
}

// type and strides are those of tokens.
cuda::Counting counting(Address tokens, Address labels, std::int64_t top_n, std::int64_t num_concepts,
                        std::int64_t codebook_size, const std::string& per, const std::string& type,
                        const std::array<std::int64_t, 3>& strides, Address counts) {
  return {pointer<const void>(tokens),
          pointer<const std::int64_t>(labels),
          top_n,
          num_concepts,
          codebook_size,
          per_of(per),
          token_of(type),
          {strides[0], strides[1], strides[2]},
          pointer<std::int64_t>(counts)};
}

// counting None: nothing is counted.
template <typename T>
void token_saliency(Address grads, const std::string& reduction, const std::optional<cuda::Counting>& counting,
                    const std::array<std::int64_t, 5>& sizes, const std::array<std::int64_t, 5>& strides,
                    Address scratch, Address out, Address stream) {
  check(cuda::token_saliency(gradients_of<T>(grads, sizes, strides), reduction_of(reduction),
                             counting.value_or(cuda::Counting{}), pointer<void>(scratch), pointer<float>(out),
                             pointer<void>(stream)));
}

template <typename T>
std::size_t token_saliency_scratch(Address grads, const std::array<std::int64_t, 5>& sizes,
                                   const std::array<std::int64_t, 5>& strides) {
  return cuda::token_saliency_scratch(gradients_of<T>(grads, sizes, strides));
}

template <typename T>
void define_token_saliency(py::module_& module, const std::string& name) {
  module.def(name.c_str(), &token_saliency<T>, py::kw_only(), py::arg("grads"), py::arg("reduction"),
             py::arg("counting"), py::arg("sizes"), py::arg("strides"), py::arg("scratch"), py::arg("out"),
             py::arg("stream"));
  module.def((name + "_scratch").c_str(), &token_saliency_scratch<T>, py::kw_only(), py::arg("grads"), py::arg("sizes"),
             py::arg("strides"));
}

// sizes are batch, height, width.
void concept_counts(Address tsv, const cuda::Counting& counting, const std::array<std::int64_t, 3>& sizes,
                    const std::array<std::int64_t, 3>& strides, Address stream) {
  check(cuda::concept_counts(grids_of<float>(tsv, strides), counting, sizes[0], sizes[1], sizes[2],
                             pointer<void>(stream)));
}

cuda::Launch launch(Address schedule, bool exact, Address scratch, Address stream) {
  return {pointer<const double>(schedule), exact ? cuda::Products::kExact : cuda::Products::kHigh,
          pointer<void>(scratch), pointer<void>(stream)};
}

// schedule 0: the numbers stand; kept 0: nothing is kept.
void gumbel_codebook(const cortex_fast::GumbelCodebook& args, bool hard, Address schedule, bool exact, Address scratch,
                     Address embedding, Address index, Address kept, Address stream) {
  check(cuda::gumbel_codebook(args, hard, launch(schedule, exact, scratch, stream), pointer<float>(embedding),
                              pointer<std::int64_t>(index), pointer<float>(kept)));
}

void gumbel_codebook_backward(const cortex_fast::GumbelCodebook& args, Address upstream, Address kept, Address schedule,
                              bool exact, Address scratch, Address grad_logits, Address grad_codebook, Address stream) {
  check(cuda::gumbel_codebook_backward(args, pointer<const float>(upstream), pointer<const float>(kept),
                                       launch(schedule, exact, scratch, stream), pointer<float>(grad_logits),
                                       pointer<float>(grad_codebook)));
}

void gumbel_codebook_step(const cortex_fast::GumbelCodebook& args, Address upstream, Address kept, Address schedule,
                          bool exact, Address scratch, Address logits, const std::array<Address, 2>& moments, double lr,
                          const std::array<double, 2>& betas, double eps, std::int64_t step, Address anchor,
                          float stay_penalty, Address stream) {
  const auto update = update_of(moments, lr, betas, eps, step, anchor, stay_penalty);
  check(cuda::gumbel_codebook_step(args, pointer<const float>(upstream), pointer<const float>(kept), update,
                                   launch(schedule, exact, scratch, stream), pointer<float>(logits)));
}

void define_gumbel_codebook(py::module_& module) {
  module.def("gumbel_codebook_scratch", &cuda::gumbel_codebook_scratch, py::kw_only(), py::arg("problems"),
             py::arg("rows"), py::arg("codes"), py::arg("channels"), py::arg("keep"));
  module.def("gumbel_codebook_backward_scratch", &cuda::gumbel_codebook_backward_scratch, py::kw_only(),
             py::arg("problems"), py::arg("rows"), py::arg("codes"), py::arg("channels"));
  module.def("gumbel_codebook", &gumbel_codebook, py::kw_only(), py::arg("args"), py::arg("hard"), py::arg("schedule"),
             py::arg("exact"), py::arg("scratch"), py::arg("embedding"), py::arg("index"), py::arg("kept"),
             py::arg("stream"));
  module.def("gumbel_codebook_backward", &gumbel_codebook_backward, py::kw_only(), py::arg("args"), py::arg("upstream"),
             py::arg("kept"), py::arg("schedule"), py::arg("exact"), py::arg("scratch"), py::arg("grad_logits"),
             py::arg("grad_codebook"), py::arg("stream"));
  module.def("gumbel_codebook_step", &gumbel_codebook_step, py::kw_only(), py::arg("args"), py::arg("upstream"),
             py::arg("kept"), py::arg("schedule"), py::arg("exact"), py::arg("scratch"), py::arg("logits"),
             py::arg("moments"), py::arg("lr"), py::arg("betas"), py::arg("eps"), py::arg("step"), py::arg("anchor"),
             py::arg("stay_penalty"), py::arg("stream"));
}

}  // namespace

void define_cuda(py::module_& module) {
  module.def("devices", &devices);
  define_gumbel_codebook(module);
  define_smoothgrad_noise<float>(module, "smoothgrad_noise_float32");
  define_smoothgrad_noise<cortex_fast::BFloat16>(module, "smoothgrad_noise_bfloat16");
  define_smoothgrad_noise<cortex_fast::Float16>(module, "smoothgrad_noise_float16");
  py::class_<cuda::Counting>(module, "Counting", py::module_local())
      .def(py::init(&counting), py::kw_only(), py::arg("tokens"), py::arg("labels"), py::arg("top_n"),
           py::arg("num_concepts"), py::arg("codebook_size"), py::arg("per"), py::arg("type"), py::arg("strides"),
           py::arg("counts"));
  define_token_saliency<float>(module, "token_saliency_float32");
  define_token_saliency<cortex_fast::BFloat16>(module, "token_saliency_bfloat16");
  define_token_saliency<cortex_fast::Float16>(module, "token_saliency_float16");
  module.def("concept_counts", &concept_counts, py::kw_only(), py::arg("tsv"), py::arg("counting"), py::arg("sizes"),
             py::arg("strides"), py::arg("stream"));
}
