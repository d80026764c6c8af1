// cortex_fast._native: the core's functions with addresses as integers. The adaptors in cortex_fast/kernels/native own
// the tensors, and check them; this file turns names into enumerators and lets other Python threads run meanwhile.
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

// Raises for a level that this processor has not: its instructions would end the process.
cortex_fast::Run run_of(int threads, const std::string& name) {
  for (const auto level : cortex_fast::levels()) {
    if (name == name_of(level)) return {threads, level};
  }
  throw std::invalid_argument("level: expected one that this processor has, got '" + name + "'");
}

template <typename T>
void token_saliency(Address grads, const std::array<std::int64_t, 5>& sizes, const std::array<std::int64_t, 5>& strides,
                    const std::string& reduction, Address out, int threads, const std::string& level) {
  const auto gradients = gradients_of<T>(grads, sizes, strides);
  const auto kind = reduction_of(reduction);
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::token_saliency(gradients, kind, pointer<float>(out), run);
}

template <typename T>
void define_token_saliency(py::module_& module, const char* name) {
  module.def(name, &token_saliency<T>, py::kw_only(), py::arg("grads"), py::arg("sizes"), py::arg("strides"),
             py::arg("reduction"), py::arg("out"), py::arg("threads"), py::arg("level"));
}

template <typename Token>
void concept_counts(Address tsv, const std::array<std::int64_t, 3>& tsv_strides, Address tokens,
                    const std::array<std::int64_t, 3>& token_strides, Address labels,
                    const std::array<std::int64_t, 3>& sizes, std::int64_t top_n, std::int64_t num_concepts,
                    std::int64_t codebook_size, const std::string& per, Address counts, int threads) {
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
  module.def(name, &concept_counts<Token>, py::kw_only(), py::arg("tsv"), py::arg("tsv_strides"), py::arg("tokens"),
             py::arg("token_strides"), py::arg("labels"), py::arg("sizes"), py::arg("top_n"), py::arg("num_concepts"),
             py::arg("codebook_size"), py::arg("per"), py::arg("counts"), py::arg("threads"));
}

cortex_fast::Stream stream_of(const std::string& name) {
  if (name == "normal") return cortex_fast::Stream::kNormal;
  if (name == "gumbel") return cortex_fast::Stream::kGumbel;
  if (name == "sampling") return cortex_fast::Stream::kSampling;
  throw std::invalid_argument("stream: expected 'normal', 'gumbel' or 'sampling', got '" + name + "'");
}

void random_stream(std::uint64_t seed, const std::string& stream, Address items, Address draws,
                   const std::array<std::int64_t, 4>& sizes, Address out, int threads, const std::string& level) {
  const auto kind = stream_of(stream);
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::random_stream(seed, kind, pointer<const std::int64_t>(items), pointer<const std::int64_t>(draws),
                             {sizes[0], sizes[1], sizes[2], sizes[3]}, pointer<float>(out), run);
}

void random_words(std::uint64_t seed, const std::string& stream, std::int64_t item, std::int64_t draw,
                  const std::array<std::int64_t, 2>& sizes, Address out, int threads, const std::string& level) {
  const auto kind = stream_of(stream);
  const auto run = run_of(threads, level);
  py::gil_scoped_release release;
  cortex_fast::random_words(seed, kind, item, draw, sizes[0], sizes[1], pointer<std::uint32_t>(out), run);
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

// sizes are batch, groups, samples, channels, positions; noise 0: drawn.
template <typename T>
void smoothgrad_noise(Address x, Address sigma, Address noise, Address order, Address group_starts, Address group_items,
                      const std::array<std::int64_t, 5>& sizes, std::int64_t first_sample, std::uint64_t seed,
                      bool antithetic, Address out, int threads, const std::string& level) {
  const auto run = run_of(threads, level);
  const cortex_fast::NoisyCopies<T> args{pointer<const T>(x),
                                         pointer<const float>(sigma),
                                         pointer<const float>(noise),
                                         pointer<const std::int64_t>(order),
                                         pointer<const std::int64_t>(group_starts),
                                         pointer<const std::int64_t>(group_items),
                                         sizes[0],
                                         sizes[1],
                                         sizes[2],
                                         sizes[3],
                                         sizes[4],
                                         first_sample,
                                         seed,
                                         antithetic};
  py::gil_scoped_release release;
  cortex_fast::smoothgrad_noise(args, pointer<T>(out), run);
}

template <typename T>
void define_smoothgrad_noise(py::module_& module, const char* name) {
  module.def(name, &smoothgrad_noise<T>, py::kw_only(), py::arg("x"), py::arg("sigma"), py::arg("noise"),
             py::arg("order"), py::arg("group_starts"), py::arg("group_items"), py::arg("sizes"),
             py::arg("first_sample"), py::arg("seed"), py::arg("antithetic"), py::arg("out"), py::arg("threads"),
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

// sizes are images, height, width, inputs, outputs; masks and bias may be 0.
void conv3x3(Address input, Address input_mask, Address weights, Address bias, const std::array<std::int64_t, 6>& sizes,
             bool unpool, bool relu, bool pool, Address output, Address output_mask, int threads,
             const std::string& level) {
  const auto run = run_of(threads, level);
  const cortex_fast::Conv3x3 args{pointer<const float>(input),
                                  pointer<const std::uint8_t>(input_mask),
                                  pointer<const float>(weights),
                                  pointer<const float>(bias),
                                  sizes[0],
                                  sizes[1],
                                  sizes[2],
                                  sizes[3],
                                  sizes[4],
                                  sizes[5],
                                  unpool,
                                  relu,
                                  pool,
                                  pointer<float>(output),
                                  pointer<std::uint8_t>(output_mask)};
  py::gil_scoped_release release;
  cortex_fast::conv3x3(args, run);
}

// sizes are outputs and inputs, strides theirs.
void conv3x3_filters(Address weight, const std::array<std::int64_t, 2>& sizes,
                     const std::array<std::int64_t, 2>& strides, bool turned, Address out, int threads) {
  const cortex_fast::Filters3x3 filters{
      pointer<const float>(weight), sizes[0], sizes[1], strides[0], strides[1], turned};
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
  module.def("random_stream", &random_stream, py::kw_only(), py::arg("seed"), py::arg("stream"), py::arg("items"),
             py::arg("draws"), py::arg("sizes"), py::arg("out"), py::arg("threads"), py::arg("level"));
  module.def("random_words", &random_words, py::kw_only(), py::arg("seed"), py::arg("stream"), py::arg("item"),
             py::arg("draw"), py::arg("sizes"), py::arg("out"), py::arg("threads"), py::arg("level"));
  define_gumbel_codebook(module);
  module.def("conv3x3", &conv3x3, py::kw_only(), py::arg("input"), py::arg("input_mask"), py::arg("weights"),
             py::arg("bias"), py::arg("sizes"), py::arg("unpool"), py::arg("relu"), py::arg("pool"), py::arg("output"),
             py::arg("output_mask"), py::arg("threads"), py::arg("level"));
  module.def("conv3x3_filters", &conv3x3_filters, py::kw_only(), py::arg("weight"), py::arg("sizes"),
             py::arg("strides"), py::arg("turned"), py::arg("out"), py::arg("threads"));
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
