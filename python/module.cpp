// cortex_fast._native: the core's functions with addresses as integers. The kernels in cortex_fast/kernels/native own
// the tensors and check them; this file turns names into enumerators and lets other Python threads run meanwhile.
//
// A function takes its operator's arguments in their order and under their names, a tensor as its address; then sizes
// and strides, the results' addresses, the number of threads and the level. An address of 0 stands for None.
#include "module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cortex_fast/concept_counts.h"
#include "cortex_fast/conv3x3.h"
#include "cortex_fast/gather_error.h"
#include "cortex_fast/gumbel_codebook.h"
#include "cortex_fast/nearest_code.h"
#include "cortex_fast/random_stream.h"
#include "cortex_fast/run.h"
#include "cortex_fast/smoothgrad_noise.h"
#include "cortex_fast/token_saliency.h"

namespace py = pybind11;

namespace {

const char* name_of(cortex_fast::Level level) {
  switch (level) {
    case cortex_fast::Level::kAvx512:
      return "avx512";
    case cortex_fast::Level::kAvx2:
      return "avx2";
    case cortex_fast::Level::kBaseline:
      break;
  }
  return "baseline";
}

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (const auto level : cortex_fast::levels()) names.emplace_back(name_of(level));
  return names;
}

// Raises for a level that this processor does not have: its instructions would end the process.
cortex_fast::Run run_of(int threads, const std::string& name) {
  for (const auto level : cortex_fast::levels()) {
    if (name == name_of(level)) return {threads, level};
  }
  throw std::invalid_argument("level: expected one that this processor has, got '" + name + "'");
}

template <typename T>
void token_saliency(Address grads, const std::string& reduction, const std::array<std::int64_t, 5>& sizes,
                    const std::array<std::int64_t, 5>& strides, Address out, int threads, const std::string& level) {
  const auto gradients = gradients_of<T>(grads, sizes, strides);
  const auto kind = reduction_of(reduction);
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::token_saliency(gradients, kind, pointer<float>(out), run);
}

template <typename T>
void define_token_saliency(py::module_& module, const char* name) {
  module.def(name, &token_saliency<T>, py::kw_only(), py::arg("grads"), py::arg("reduction"), py::arg("sizes"),
             py::arg("strides"), py::arg("out"), py::arg("threads"), py::arg("level"));
}

// sizes are batch, height, width.
template <typename Token>
void concept_counts(Address tsv, Address tokens, Address labels, std::int64_t top_n, std::int64_t num_concepts,
                    std::int64_t codebook_size, const std::string& per, const std::array<std::int64_t, 3>& sizes,
                    const std::array<std::int64_t, 3>& tsv_strides, const std::array<std::int64_t, 3>& token_strides,
                    Address counts, int threads) {
  const cortex_fast::CountSizes all{sizes[0], sizes[1], sizes[2], top_n, num_concepts, codebook_size};
  const auto kind = per_of(per);
  py::gil_scoped_release release;
  if (!cortex_fast::concept_counts(grids_of<float>(tsv, tsv_strides), grids_of<Token>(tokens, token_strides),
                                   pointer<const std::int64_t>(labels), all, kind, pointer<std::int64_t>(counts),
                                   threads)) {
    throw std::invalid_argument("tokens, labels: expected values in [0, codebook_size) and [0, num_concepts)");
  }
}

template <typename Token>
void define_concept_counts(py::module_& module, const char* name) {
  module.def(name, &concept_counts<Token>, py::kw_only(), py::arg("tsv"), py::arg("tokens"), py::arg("labels"),
             py::arg("top_n"), py::arg("num_concepts"), py::arg("codebook_size"), py::arg("per"), py::arg("sizes"),
             py::arg("tsv_strides"), py::arg("token_strides"), py::arg("counts"), py::arg("threads"));
}

cortex_fast::Stream stream_of(const std::string& name) {
  if (name == "normal") return cortex_fast::Stream::kNormal;
  if (name == "gumbel") return cortex_fast::Stream::kGumbel;
  if (name == "sampling") return cortex_fast::Stream::kSampling;
  throw std::invalid_argument("stream: expected 'normal', 'gumbel' or 'sampling', got '" + name + "'");
}

// sizes are those of items and draws.
void random_stream(const std::string& stream, std::uint64_t seed, Address items, Address draws, std::int64_t rows,
                   std::int64_t length, const std::array<std::int64_t, 2>& sizes, Address out, int threads,
                   const std::string& level) {
  const auto kind = stream_of(stream);
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::random_stream(kind, seed, pointer<const std::int64_t>(items), pointer<const std::int64_t>(draws),
                             {sizes[0], sizes[1], rows, length}, pointer<float>(out), run);
}

// sizes of gumbel_codebook's functions are problems, rows, codes, channels; gumbel 0: drawn.
void gumbel_codebook(Address logits, Address codebook, float tau, std::uint64_t seed, std::int64_t draw,
                     Address item_ids, bool hard, Address gumbel, const std::array<std::int64_t, 4>& sizes,
                     Address embedding, Address index, int threads, const std::string& level) {
  const auto run = run_of(threads, level);
  const auto selection = selection_of(logits, codebook, tau, seed, draw, item_ids, hard, gumbel, sizes);
  py::gil_scoped_release release;
  cortex_fast::gumbel_codebook(selection, pointer<float>(embedding), pointer<std::int64_t>(index), run);
}

// grad_codebook 0: not needed.
void gumbel_codebook_backward(Address upstream, Address logits, Address codebook, float tau, std::uint64_t seed,
                              std::int64_t draw, Address item_ids, bool hard, Address gumbel, Address index,
                              const std::array<std::int64_t, 4>& sizes, Address grad_logits, Address grad_codebook,
                              int threads, const std::string& level) {
  const auto run = run_of(threads, level);
  const auto selection = selection_of(logits, codebook, tau, seed, draw, item_ids, hard, gumbel, sizes);
  py::gil_scoped_release release;
  cortex_fast::gumbel_codebook_backward(pointer<const float>(upstream), selection, pointer<const std::int64_t>(index),
                                        pointer<float>(grad_logits), pointer<float>(grad_codebook), run);
}

// moments 0, 0: plain gradient descent; anchor 0: none.
void gumbel_codebook_step(Address logits, Address codebook, Address upstream, double lr, float tau, std::uint64_t seed,
                          std::int64_t draw, Address item_ids, const std::array<Address, 2>& moments,
                          std::int64_t step_count, const std::array<double, 2>& betas, double eps, Address gumbel,
                          Address anchor, float stay_penalty, const std::array<std::int64_t, 4>& sizes, int threads,
                          const std::string& level) {
  const auto run = run_of(threads, level);
  const auto selection = selection_of(logits, codebook, tau, seed, draw, item_ids, true, gumbel, sizes);
  const auto update = update_of(lr, moments, step_count, betas, eps, anchor, stay_penalty);
  py::gil_scoped_release release;
  cortex_fast::gumbel_codebook_step(selection, pointer<const float>(upstream), update, pointer<float>(logits), run);
}

void define_gumbel_codebook(py::module_& module) {
  module.def("gumbel_codebook", &gumbel_codebook, py::kw_only(), py::arg("logits"), py::arg("codebook"), py::arg("tau"),
             py::arg("seed"), py::arg("draw"), py::arg("item_ids"), py::arg("hard"), py::arg("gumbel"),
             py::arg("sizes"), py::arg("embedding"), py::arg("index"), py::arg("threads"), py::arg("level"));
  module.def("gumbel_codebook_backward", &gumbel_codebook_backward, py::kw_only(), py::arg("upstream"),
             py::arg("logits"), py::arg("codebook"), py::arg("tau"), py::arg("seed"), py::arg("draw"),
             py::arg("item_ids"), py::arg("hard"), py::arg("gumbel"), py::arg("index"), py::arg("sizes"),
             py::arg("grad_logits"), py::arg("grad_codebook"), py::arg("threads"), py::arg("level"));
  module.def("gumbel_codebook_step", &gumbel_codebook_step, py::kw_only(), py::arg("logits"), py::arg("codebook"),
             py::arg("upstream"), py::arg("lr"), py::arg("tau"), py::arg("seed"), py::arg("draw"), py::arg("item_ids"),
             py::arg("moments"), py::arg("step_count"), py::arg("betas"), py::arg("eps"), py::arg("gumbel"),
             py::arg("anchor"), py::arg("stay_penalty"), py::arg("sizes"), py::arg("threads"), py::arg("level"));
}

// order, group_starts and group_items are item_ids in groups of equal ones; sizes are batch, groups, channels,
// positions.
template <typename T>
void smoothgrad_noise(Address x, Address sigma, std::int64_t num_samples, std::uint64_t seed, Address order,
                      Address group_starts, Address group_items, bool antithetic, std::int64_t first_sample,
                      Address normals, const std::array<std::int64_t, 4>& sizes, Address out, int threads,
                      const std::string& level) {
  const auto run = run_of(threads, level);
  const cortex_fast::NoisyCopies<T> args{pointer<const T>(x),
                                         pointer<const float>(sigma),
                                         num_samples,
                                         seed,
                                         pointer<const std::int64_t>(order),
                                         pointer<const std::int64_t>(group_starts),
                                         pointer<const std::int64_t>(group_items),
                                         antithetic,
                                         first_sample,
                                         pointer<const float>(normals),
                                         sizes[0],
                                         sizes[1],
                                         sizes[2],
                                         sizes[3]};
  py::gil_scoped_release release;
  cortex_fast::smoothgrad_noise(args, pointer<T>(out), run);
}

template <typename T>
void define_smoothgrad_noise(py::module_& module, const char* name) {
  module.def(name, &smoothgrad_noise<T>, py::kw_only(), py::arg("x"), py::arg("sigma"), py::arg("num_samples"),
             py::arg("seed"), py::arg("order"), py::arg("group_starts"), py::arg("group_items"), py::arg("antithetic"),
             py::arg("first_sample"), py::arg("normals"), py::arg("sizes"), py::arg("out"), py::arg("threads"),
             py::arg("level"));
}

// sizes are images, channels, positions.
void gather_error(Address embedding, Address tokens, Address codebook, const std::array<std::int64_t, 3>& sizes,
                  Address error, int threads, const std::string& level) {
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::gather_error({pointer<const float>(embedding), pointer<const std::int32_t>(tokens),
                             pointer<const float>(codebook), sizes[0], sizes[1], sizes[2]},
                            pointer<float>(error), run);
}

// sizes are rows, codes, channels.
void nearest_code(Address z, Address codebook, const std::array<std::int64_t, 3>& sizes, Address index, int threads,
                  const std::string& level) {
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::nearest_code({pointer<const float>(z), pointer<const float>(codebook), sizes[0], sizes[1], sizes[2]},
                            pointer<std::int64_t>(index), run);
}

// sizes are images, the grid's height and width before pooling, input and output channels.
void conv3x3(Address x, Address bias, Address winograd, bool relu, bool pool, std::int64_t padding,
             const std::array<std::int64_t, 5>& sizes, Address y, Address mask, int threads, const std::string& level) {
  const auto run = run_of(threads, level);
  cortex_fast::Conv3x3 args{};
  args.input = pointer<const float>(x);
  args.bias = pointer<const float>(bias);
  args.winograd = pointer<const float>(winograd);
  args.relu = relu;
  args.pool = pool;
  args.padding = padding;
  args.images = sizes[0];
  args.height = sizes[1];
  args.width = sizes[2];
  args.inputs = sizes[3];
  args.outputs = sizes[4];
  args.output = pointer<float>(y);
  args.output_mask = pointer<std::uint8_t>(mask);
  py::gil_scoped_release release;
  cortex_fast::conv3x3(args, run);
}

// The transposed convolution, whose input is the upstream gradient. sizes are images, the gradient's height and width,
// and the forward pass's input and output channels.
void conv3x3_backward(Address upstream, Address mask, Address winograd_transposed, bool pool, std::int64_t padding,
                      const std::array<std::int64_t, 5>& sizes, Address gradient, int threads,
                      const std::string& level) {
  const auto run = run_of(threads, level);
  cortex_fast::Conv3x3 args{};
  args.input = pointer<const float>(upstream);
  args.input_mask = pointer<const std::uint8_t>(mask);
  args.winograd = pointer<const float>(winograd_transposed);
  args.unpool = pool;
  args.padding = 2 - padding;
  args.images = sizes[0];
  args.height = sizes[1];
  args.width = sizes[2];
  args.inputs = sizes[4];
  args.outputs = sizes[3];
  args.output = pointer<float>(gradient);
  py::gil_scoped_release release;
  cortex_fast::conv3x3(args, run);
}

// sizes and strides are those of the filters' outputs and inputs.
void conv3x3_filters(Address weight, bool transposed, const std::array<std::int64_t, 2>& sizes,
                     const std::array<std::int64_t, 2>& strides, Address out, int threads) {
  const cortex_fast::Filters3x3 filters{
      pointer<const float>(weight), transposed, sizes[0], sizes[1], strides[0], strides[1]};
  py::gil_scoped_release release;
  cortex_fast::conv3x3_filters(filters, pointer<float>(out), threads);
}

py::dict build_info() {
  py::dict info;
  info["version"] = CORTEX_FAST_VERSION;
  info["compiler"] = CORTEX_FAST_COMPILER;
  info["flags"] = CORTEX_FAST_FLAGS;
  info["build_type"] = CORTEX_FAST_BUILD_TYPE;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef CORTEX_FAST_CUDA_BUILD
  info["cuda"] = CORTEX_FAST_CUDA_BUILD;
  info["why_no_cuda"] = py::none();
#else
  info["cuda"] = py::none();
  info["why_no_cuda"] = CORTEX_FAST_WHY_NO_CUDA;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native core of cortex-fast: addresses, sizes and strides in. Use cortex_fast.ops instead.";
  module.def("build_info", &build_info);
  module.def("levels", &level_names);
  module.def(
      "advise_large_pages",
      [](Address memory, std::size_t bytes) { cortex_fast::advise_large_pages(pointer<void>(memory), bytes); },
      py::arg("memory"), py::arg("bytes"));
  module.def("random_stream", &random_stream, py::kw_only(), py::arg("stream"), py::arg("seed"), py::arg("items"),
             py::arg("draws"), py::arg("rows"), py::arg("length"), py::arg("sizes"), py::arg("out"), py::arg("threads"),
             py::arg("level"));
  define_gumbel_codebook(module);
  module.def("conv3x3", &conv3x3, py::kw_only(), py::arg("x"), py::arg("bias"), py::arg("winograd"), py::arg("relu"),
             py::arg("pool"), py::arg("padding"), py::arg("sizes"), py::arg("y"), py::arg("mask"), py::arg("threads"),
             py::arg("level"));
  module.def("conv3x3_backward", &conv3x3_backward, py::kw_only(), py::arg("upstream"), py::arg("mask"),
             py::arg("winograd_transposed"), py::arg("pool"), py::arg("padding"), py::arg("sizes"), py::arg("gradient"),
             py::arg("threads"), py::arg("level"));
  module.def("conv3x3_filters", &conv3x3_filters, py::kw_only(), py::arg("weight"), py::arg("transposed"),
             py::arg("sizes"), py::arg("strides"), py::arg("out"), py::arg("threads"));
  define_token_saliency<float>(module, "token_saliency_float32");
  define_token_saliency<cortex_fast::BFloat16>(module, "token_saliency_bfloat16");
  define_token_saliency<cortex_fast::Float16>(module, "token_saliency_float16");
  define_smoothgrad_noise<float>(module, "smoothgrad_noise_float32");
  define_smoothgrad_noise<cortex_fast::BFloat16>(module, "smoothgrad_noise_bfloat16");
  define_smoothgrad_noise<cortex_fast::Float16>(module, "smoothgrad_noise_float16");
  module.def("gather_error", &gather_error, py::kw_only(), py::arg("embedding"), py::arg("tokens"), py::arg("codebook"),
             py::arg("sizes"), py::arg("error"), py::arg("threads"), py::arg("level"));
  module.def("nearest_code", &nearest_code, py::kw_only(), py::arg("z"), py::arg("codebook"), py::arg("sizes"),
             py::arg("index"), py::arg("threads"), py::arg("level"));
  define_concept_counts<std::uint8_t>(module, "concept_counts_uint8");
  define_concept_counts<std::int16_t>(module, "concept_counts_int16");
  define_concept_counts<std::uint16_t>(module, "concept_counts_uint16");
  define_concept_counts<std::int32_t>(module, "concept_counts_int32");
  define_concept_counts<std::int64_t>(module, "concept_counts_int64");
#ifdef CORTEX_FAST_CUDA_BUILD
  auto cuda = module.def_submodule("cuda", "The CUDA kernels: addresses on the current device, and a stream.");
  define_cuda(cuda);
#endif
}
