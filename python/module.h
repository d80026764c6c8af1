// Shared by the files of cortex_fast._native: addresses as integers, names as enumerators, and arguments that the CPU's
// and the GPU's functions have in common.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
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

// sizes are problems, rows, codes, channels; gumbel 0: drawn.
inline cortex_fast::GumbelCodebook selection_of(Address logits, Address codebook, float tau, std::uint64_t seed,
                                                std::int64_t draw, Address item_ids, bool hard, Address gumbel,
                                                const std::array<std::int64_t, 4>& sizes) {
  cortex_fast::GumbelCodebook selection{};
  selection.logits = pointer<const float>(logits);
  selection.codebook = pointer<const float>(codebook);
  selection.tau = std::clamp(tau, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
  selection.seed = seed;
  selection.draw = draw;
  selection.item_ids = pointer<const std::int64_t>(item_ids);
  selection.hard = hard;
  selection.gumbel = pointer<const float>(gumbel);
  selection.problems = sizes[0];
  selection.rows = sizes[1];
  selection.codes = sizes[2];
  selection.channels = sizes[3];
  return selection;
}

// Moments 0, 0: plain gradient descent.
inline cortex_fast::Update update_of(double lr, const std::array<Address, 2>& moments, std::int64_t step_count,
                                     const std::array<double, 2>& betas, double eps, Address anchor,
                                     float stay_penalty) {
  cortex_fast::Update update{};
  update.lr = lr;
  update.first_moment = pointer<float>(moments[0]);
  update.second_moment = pointer<float>(moments[1]);
  update.step_count = step_count;
  update.beta1 = betas[0];
  update.beta2 = betas[1];
  update.eps = eps;
  update.anchor = pointer<const std::int64_t>(anchor);
  update.stay_penalty = stay_penalty;
  return update;
}

// python/cuda.cpp, where the build has CUDA.
void define_cuda(pybind11::module_& module);
