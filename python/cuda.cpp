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

// largest_score, log_denominator, selected, soft_embedding.
cuda::RowStats row_stats_of(const std::array<Address, 4>& row_stats) {
  return {pointer<float>(row_stats[0]), pointer<float>(row_stats[1]), pointer<std::int64_t>(row_stats[2]),
          pointer<float>(row_stats[3])};
}

// sizes of gumbel_codebook's functions are problems, rows, codes, channels; gumbel 0: drawn; schedule 0: the numbers
// count. row_stats 0, 0, 0, 0: only the index is computed.
void gumbel_codebook(Address logits, Address codebook, float tau, std::uint64_t seed, std::int64_t draw,
                     Address item_ids, bool hard, Address gumbel, Address schedule,
                     const std::array<std::int64_t, 4>& sizes, Address embedding, Address index,
                     const std::array<Address, 4>& row_stats, bool exact, Address scratch, Address stream) {
  auto stats = row_stats_of(row_stats);
  stats.selected = pointer<std::int64_t>(index);
  check(cuda::gumbel_codebook(selection_of(logits, codebook, tau, seed, draw, item_ids, hard, gumbel, sizes),
                              launch(schedule, exact, scratch, stream), pointer<float>(embedding), stats));
}

// grad_codebook 0: not needed, or that of a hard selection.
void gumbel_codebook_backward(Address upstream, Address logits, Address codebook, float tau, std::uint64_t seed,
                              std::int64_t draw, Address item_ids, bool hard, Address gumbel, Address schedule,
                              const std::array<Address, 4>& row_stats, const std::array<std::int64_t, 4>& sizes,
                              Address grad_logits, Address grad_codebook, bool exact, Address scratch, Address stream) {
  check(cuda::gumbel_codebook_backward(pointer<const float>(upstream),
                                       selection_of(logits, codebook, tau, seed, draw, item_ids, hard, gumbel, sizes),
                                       row_stats_of(row_stats), launch(schedule, exact, scratch, stream),
                                       pointer<float>(grad_logits), pointer<float>(grad_codebook)));
}

// moments 0, 0: plain gradient descent; anchor 0: none.
void gumbel_codebook_step(Address logits, Address codebook, Address upstream, double lr, float tau, std::uint64_t seed,
                          std::int64_t draw, Address item_ids, const std::array<Address, 2>& moments,
                          std::int64_t step_count, const std::array<double, 2>& betas, double eps, Address gumbel,
                          Address anchor, float stay_penalty, Address schedule, const std::array<Address, 4>& row_stats,
                          const std::array<std::int64_t, 4>& sizes, bool exact, Address scratch, Address stream) {
  check(cuda::gumbel_codebook_step(
      selection_of(logits, codebook, tau, seed, draw, item_ids, true, gumbel, sizes), pointer<const float>(upstream),
      update_of(lr, moments, step_count, betas, eps, anchor, stay_penalty), row_stats_of(row_stats),
      launch(schedule, exact, scratch, stream), pointer<float>(logits)));
}

std::size_t gumbel_codebook_scratch(const std::array<std::int64_t, 4>& sizes, bool with_row_stats) {
  return cuda::gumbel_codebook_scratch(sizes[0], sizes[1], sizes[2], sizes[3], with_row_stats);
}

std::size_t gumbel_codebook_backward_scratch(const std::array<std::int64_t, 4>& sizes) {
  return cuda::gumbel_codebook_backward_scratch(sizes[0], sizes[1], sizes[2], sizes[3]);
}

void define_gumbel_codebook(py::module_& module) {
  module.def("gumbel_codebook_scratch", &gumbel_codebook_scratch, py::kw_only(), py::arg("sizes"),
             py::arg("with_row_stats"));
  module.def("gumbel_codebook_backward_scratch", &gumbel_codebook_backward_scratch, py::kw_only(), py::arg("sizes"));
  module.def("gumbel_codebook", &gumbel_codebook, py::kw_only(), py::arg("logits"), py::arg("codebook"), py::arg("tau"),
             py::arg("seed"), py::arg("draw"), py::arg("item_ids"), py::arg("hard"), py::arg("gumbel"),
             py::arg("schedule"), py::arg("sizes"), py::arg("embedding"), py::arg("index"), py::arg("row_stats"),
             py::arg("exact"), py::arg("scratch"), py::arg("stream"));
  module.def("gumbel_codebook_backward", &gumbel_codebook_backward, py::kw_only(), py::arg("upstream"),
             py::arg("logits"), py::arg("codebook"), py::arg("tau"), py::arg("seed"), py::arg("draw"),
             py::arg("item_ids"), py::arg("hard"), py::arg("gumbel"), py::arg("schedule"), py::arg("row_stats"),
             py::arg("sizes"), py::arg("grad_logits"), py::arg("grad_codebook"), py::arg("exact"), py::arg("scratch"),
             py::arg("stream"));
  module.def("gumbel_codebook_step", &gumbel_codebook_step, py::kw_only(), py::arg("logits"), py::arg("codebook"),
             py::arg("upstream"), py::arg("lr"), py::arg("tau"), py::arg("seed"), py::arg("draw"), py::arg("item_ids"),
             py::arg("moments"), py::arg("step_count"), py::arg("betas"), py::arg("eps"), py::arg("gumbel"),
             py::arg("anchor"), py::arg("stay_penalty"), py::arg("schedule"), py::arg("row_stats"), py::arg("sizes"),
             py::arg("exact"), py::arg("scratch"), py::arg("stream"));
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
