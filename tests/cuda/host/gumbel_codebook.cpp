// What gumbel_on_host.py calls: the entry points of gumbel_codebook_cuda.h on the stand-in for a GPU, with scratch
// memory of exactly the bytes that they ask for, full of NaN.
#include <cstdlib>

#include "cortex_fast/gumbel_codebook_cuda.h"
#include "tiles_on_host.h"

namespace cc = cortex_fast::cuda;

namespace {

struct Memory {
  void* bytes = nullptr;

  explicit Memory(std::size_t count) {
    if (posix_memalign(&bytes, 256, count == 0 ? 1 : count) != 0) std::abort();
    std::memset(bytes, 0xFF, count);
  }
  ~Memory() { std::free(bytes); }
};

// The arguments that the calls share; gumbel_on_host.py has the same structure.
struct Arguments {
  const float *logits, *codebook;
  float tau;
  std::uint64_t seed;
  std::int64_t draw;
  const std::int64_t* item_ids;
  const float* gumbel;
  const double* schedule;
  std::int64_t problems, rows, codes, channels;
  std::int32_t products;

  cortex_fast::GumbelCodebook selection(bool hard = true) const {
    return {logits, codebook, tau, seed, draw, item_ids, hard, gumbel, problems, rows, codes, channels};
  }
  cc::Launch launch(const Memory& scratch) const {
    return {schedule, static_cast<cc::Products>(products), scratch.bytes, nullptr};
  }
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Threads and blocks from the last to the first; asynchronous copies by one thread, as from sm_90 on, or by all.
EXPORTED void run_like(int backwards, int bulk) {
  cuda_on_host::set_order(backwards != 0);
  tiles_on_host::set_bulk(bulk != 0);
}

EXPORTED int gumbel_forward(const Arguments* from, int hard, float* embedding, const cc::RowStats* row_stats) {
  const bool soft = row_stats->largest_score != nullptr;
  const Memory scratch(cc::gumbel_codebook_scratch(from->problems, from->rows, from->codes, from->channels, soft));
  return cc::gumbel_codebook(from->selection(hard != 0), from->launch(scratch), embedding, *row_stats).code;
}

EXPORTED int gumbel_backward(const Arguments* from, const float* upstream, const cc::RowStats* row_stats,
                             float* grad_logits, float* grad_codebook) {
  const Memory scratch(cc::gumbel_codebook_backward_scratch(from->problems, from->rows, from->codes, from->channels));
  return cc::gumbel_codebook_backward(upstream, from->selection(), *row_stats, from->launch(scratch), grad_logits,
                                      grad_codebook)
      .code;
}

EXPORTED int gumbel_step(const Arguments* from, const float* upstream, double lr, float* first, float* second,
                         std::int64_t step_count, double beta1, double beta2, double eps, const std::int64_t* anchor,
                         float stay_penalty, const cc::RowStats* row_stats, float* logits) {
  const Memory scratch(cc::gumbel_codebook_backward_scratch(from->problems, from->rows, from->codes, from->channels));
  const cortex_fast::Update update{lr, first, second, step_count, beta1, beta2, eps, anchor, stay_penalty};
  return cc::gumbel_codebook_step(from->selection(), upstream, update, *row_stats, from->launch(scratch), logits).code;
}
