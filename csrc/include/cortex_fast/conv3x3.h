// 3 x 3 convolution of stride 1, with its ReLU and 2 x 2 max-pooling, and the gradient of its input.
#pragma once

#include <cstdint>

#include "cortex_fast/run.h"

namespace cortex_fast {

// Images are channels-last and contiguous. A mask has a bit for each element before pooling, [images, height, width,
// ceil(channels / 8)] bytes, the lowest bit first: whether a gradient passes there.
//
// The gradient of an input is the same convolution with transposed filters, padding 2 - padding, and `unpool`.
struct Conv3x3 {
  // [images, h, w, inputs] with h = height + 2 - 2 padding, w = width + 2 - 2 padding; where `unpool` is true
  // [images, h / 2, w / 2, inputs], each value repeated over its 2 x 2 window. Elements whose bit of input_mask is 0
  // count as 0.
  const float* input;
  const std::uint8_t* input_mask;  // or null: all count
  const float* bias;               // [outputs], or null
  // U = G w G^T of each filter, in panels: [36, ceil(outputs / 16), inputs, 16], zero past the last output.
  const float* winograd;
  bool unpool;  // of the input
  bool relu, pool;
  std::int64_t padding, images, height, width, inputs, outputs;
  float* output;              // [images, height, width, outputs], or with pool [images, height / 2, width / 2, outputs]
  std::uint8_t* output_mask;  // of ReLU and pooling, or null; written as a whole
};

void conv3x3(const Conv3x3& args, const Run& run);

// Filters w [outputs, inputs, 3, 3]: a filter's 9 taps are contiguous, the rest has strides. transposed: each is
// rotated by half a turn, for the transposed convolution.
struct Filters3x3 {
  const float* weight;
  bool transposed;
  std::int64_t outputs, inputs, output_stride, input_stride;
};

// What Conv3x3::winograd points to, computed in float64: each filter's U = G w G^T (Lavin and Gray 2016).
void conv3x3_filters(const Filters3x3& filters, float* out, int threads);

}  // namespace cortex_fast
