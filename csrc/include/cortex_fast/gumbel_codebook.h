// Gumbel-Softmax selection times codebook (eq. 7): forward, backward, and the backward fused with an optimiser's step.
//
// With scores s = logits + g, g ~ Gumbel(0, 1), and y = softmax(s / tau): index = argmax s, the embedding is C[index]
// (hard) or y C (soft), D = dE C^T and dP = y (D - <y, D>) / tau, straight through y where the selection is hard.
#pragma once

#include <cstdint>

#include "cortex_fast/run.h"

namespace cortex_fast {

// All arrays are contiguous. Row r of problem p is row p rows + r of the arrays.
struct GumbelCodebook {
  const float* logits;    // [problems rows, codes]; -inf bans a token
  const float* codebook;  // C [codes, channels]
  float tau;
  std::uint64_t seed;
  std::int64_t draw;             // in [0, 2^32)
  const std::int64_t* item_ids;  // [problems], in [0, 2^32)
  bool hard;                     // a step does not depend on it
  const float* gumbel;           // [problems rows, codes], or null: drawn from the stream
  std::int64_t problems, rows, codes, channels;
};

// embedding [problems rows, channels], index [problems rows]. A NaN score is the largest; ties go to the lower index.
void gumbel_codebook(const GumbelCodebook& args, float* embedding, std::int64_t* index, const Run& run);

// grad_logits [problems rows, codes] from upstream dE [problems rows, channels]; grad_codebook [codes, channels] unless
// it is null. index is the forward's.
void gumbel_codebook_backward(const float* upstream, const GumbelCodebook& args, const std::int64_t* index,
                              float* grad_logits, float* grad_codebook, const Run& run);

// torch.optim.Adam's update; plain gradient descent if the moments are null.
struct Update {
  double lr;
  float* first_moment;      // [problems rows, codes]
  float* second_moment;     // [problems rows, codes]
  std::int64_t step_count;  // from 1
  double beta1, beta2, eps;
  // The loss also has stay_penalty (1 - y[anchor]) for each row, straight through y: [problems rows], or null.
  const std::int64_t* anchor;
  float stay_penalty;
};

// logits, which args.logits points to as well, after one step along dP; dP is never written.
void gumbel_codebook_step(const GumbelCodebook& args, const float* upstream, const Update& update, float* logits,
                          const Run& run);

}  // namespace cortex_fast
