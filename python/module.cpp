// cortex_fast._native: the core's functions with addresses as integers. The adaptors in cortex_fast/kernels/native own
// the tensors, and check them; this file turns names into enumerators and lets other Python threads run meanwhile.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cortex_fast/concept_counts.h"
#include "cortex_fast/token_saliency.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

cortex_fast::Reduction reduction_of(const std::string& name) {
  if (name == "absmax") return cortex_fast::Reduction::kAbsMax;
  if (name == "max") return cortex_fast::Reduction::kMax;
  if (name == "mean") return cortex_fast::Reduction::kMean;
  throw std::invalid_argument("reduction: expected 'absmax', 'max' or 'mean', got '" + name + "'");
}

cortex_fast::Per per_of(const std::string& name) {
  if (name == "occurrence") return cortex_fast::Per::kOccurrence;
  if (name == "image") return cortex_fast::Per::kImage;
  throw std::invalid_argument("per: expected 'occurrence' or 'image', got '" + name + "'");
}

void token_saliency(Address grads, const std::array<std::int64_t, 5>& sizes, const std::array<std::int64_t, 5>& strides,
                    const std::string& reduction, Address out, int threads) {
  cortex_fast::Gradients gradients{pointer<const float>(grads), {}, {}};
  std::copy(sizes.begin(), sizes.end(), gradients.sizes);
  std::copy(strides.begin(), strides.end(), gradients.strides);
  const auto kind = reduction_of(reduction);
  py::gil_scoped_release release;
  cortex_fast::token_saliency(gradients, kind, pointer<float>(out), threads);
}

template <typename T>
cortex_fast::Grids<T> grids(Address address, const std::array<std::int64_t, 3>& strides) {
  return {pointer<const T>(address), {strides[0], strides[1], strides[2]}};
}

template <typename Token>
void concept_counts(Address tsv, const std::array<std::int64_t, 3>& tsv_strides, Address tokens,
                    const std::array<std::int64_t, 3>& token_strides, Address labels,
                    const std::array<std::int64_t, 3>& sizes, std::int64_t top_n, std::int64_t num_concepts,
                    std::int64_t codebook_size, const std::string& per, Address counts, int threads) {
  const cortex_fast::CountSizes all{sizes[0], sizes[1], sizes[2], top_n, num_concepts, codebook_size};
  const auto kind = per_of(per);
  py::gil_scoped_release release;
  if (!cortex_fast::concept_counts(grids<float>(tsv, tsv_strides), grids<Token>(tokens, token_strides),
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
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native core of cortex-fast: addresses, sizes and strides in. Use cortex_fast.ops instead.";
  module.def("build_info", &build_info);
  module.def("token_saliency", &token_saliency, py::kw_only(), py::arg("grads"), py::arg("sizes"), py::arg("strides"),
             py::arg("reduction"), py::arg("out"), py::arg("threads"));
  define_concept_counts<std::uint8_t>(module, "concept_counts_uint8");
  define_concept_counts<std::int16_t>(module, "concept_counts_int16");
  define_concept_counts<std::uint16_t>(module, "concept_counts_uint16");
  define_concept_counts<std::int32_t>(module, "concept_counts_int32");
  define_concept_counts<std::int64_t>(module, "concept_counts_int64");
}
