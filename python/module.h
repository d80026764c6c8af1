// What the files of cortex_fast._native share: addresses as integers, names as enumerators.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cortex_fast/concept_counts.h"
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

// python/cuda.cpp, where the build has CUDA.
void define_cuda(pybind11::module_& module);
