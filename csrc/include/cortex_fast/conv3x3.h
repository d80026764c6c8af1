// 3 x 3 convolution of stride 1, with its ReLU and 2 x 2 max-pooling, and the same to the input.
#pragma once

#include <cstdint>

#include "cortex_fast/run.h"

namespace cortex_fast {

// Images are channels-last and contiguous. A mask has a bit for each element before pooling, [images, height, width,
// ceil(channels / 8)] bytes, the lowest bit first: whether a gradient passes there.
struct Conv3x3 {
  // [images, h, w, inputs] with h = height + 2 - 2 padding, w = width + 2 - 2 padding; where `unpool` is true
  // [images, h / 2, w / 2, inputs], each value standing for its 2 x 2 window; elements whose bit of input_mask (if not
  // null) is 0 count as 0.
  const float* input;
  const std::uint8_t* input_mask;
  // U = G w G^T of each filter, in panels: [36, ceil(outputs / 16), inputs, 16], zero past the last output.
  const float* weights;
  const float* bias;  // [outputs], or null
  std::int64_t images, height, width, inputs, outputs, padding;
  bool unpool;  // of the input
  bool relu, pool;
  float* output;              // [images, height, width, outputs], or with pool [images, height / 2, width / 2, outputs]
  std::uint8_t* output_mask;  // of ReLU and pooling, or null; written as a whole
};

void conv3x3(const Conv3x3& args, const Run& run);

// Filters w [outputs, inputs, 3, 3], a filter's 9 taps together, the rest by strides. turned: by half a turn, as those
// of the convolution's transpose.
struct Filters3x3 {
  const float* weight;
  std::int64_t outputs, inputs, output_stride, input_stride;
  bool turned;
};

// What Conv3x3::weights points to, computed in float64: each filter's U = G w G^T (Lavin and Gray 2016).
void conv3x3_filters(const Filters3x3& filters, float* out, int threads);

}  // namespace cortex_fast
