// Shared by the files of cortex_fast._native: addresses as integers, names as enumerators, and arguments that the CPU's
// and the GPU's functions have in common.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cortex_fast/concept_counts.h"
#include "cortex_fast/gumbel_codebook.h"
#include "cortex_fast/token_saliency.h"

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline cortex_fast::Reduction reduction_of(const std::string& name) {
  if (name == "absmax") return cortex_fast::Reduction::kAbsMax;
  if (name == "max") return cortex_fast::Reduction::kMax;
  if (name == "mean") return cortex_fast::Reduction::kMean;
  throw std::invalid_argument("reduction: expected 'absmax', 'max' or 'mean', got '" + name + "'");
}

inline cortex_fast::Per per_of(const std::string& name) {
  if (name == "occurrence") return cortex_fast::Per::kOccurrence;
  if (name == "image") return cortex_fast::Per::kImage;
  throw std::invalid_argument("per: expected 'occurrence' or 'image', got '" + name + "'");
}

template <typename T>
cortex_fast::Gradients<T> gradients_of(Address data, const std::array<std::int64_t, 5>& sizes,
                                       const std::array<std::int64_t, 5>& strides) {
  cortex_fast::Gradients<T> gradients{pointer<const T>(data), {}, {}};
  std::copy(sizes.begin(), sizes.end(), gradients.sizes);
  std::copy(strides.begin(), strides.end(), gradients.strides);
  return gradients;
}

template <typename T>
cortex_fast::Grids<T> grids_of(Address data, const std::array<std::int64_t, 3>& strides) {
  return {pointer<const T>(data), {strides[0], strides[1], strides[2]}};
}

// Moments 0, 0: plain gradient descent.
inline cortex_fast::Update update_of(const std::array<Address, 2>& moments, double lr,
                                     const std::array<double, 2>& betas, double eps, std::int64_t step, Address anchor,
                                     float stay_penalty) {
  return {pointer<float>(moments[0]),
          pointer<float>(moments[1]),
          lr,
          betas[0],
          betas[1],
          eps,
          step,
          pointer<const std::int64_t>(anchor),
          stay_penalty};
}

// python/cuda.cpp, where the build has CUDA.
void define_cuda(pybind11::module_& module);
