// What gumbel_on_host.py calls: the entry points of gumbel_codebook_cuda.h on the stand-in for a GPU, with scratch
// memory of just the bytes that they ask for, full of NaN.
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

// What the calls share; gumbel_on_host.py has the same.
struct Problem {
  const float *logits, *codebook, *gumbel;
  const std::int64_t* item_ids;
  const double* schedule;
  std::int64_t problems, rows, codes, channels;
  std::uint64_t seed;
  std::int64_t draw;
  float tau;
  std::int32_t products;

  cortex_fast::GumbelCodebook args() const {
    return {logits, codebook, gumbel, item_ids, problems, rows, codes, channels, tau, seed, draw};
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

EXPORTED int gumbel_forward(const Problem* of, int hard, float* embedding, std::int64_t* index, float* kept) {
  const Memory scratch(cc::gumbel_codebook_scratch(of->problems, of->rows, of->codes, of->channels, kept != nullptr));
  return cc::gumbel_codebook(of->args(), hard != 0, of->launch(scratch), embedding, index, kept).code;
}

EXPORTED int gumbel_backward(const Problem* of, const float* upstream, const float* kept, float* grad_logits,
                             float* grad_codebook) {
  const Memory scratch(cc::gumbel_codebook_backward_scratch(of->problems, of->rows, of->codes, of->channels));
  return cc::gumbel_codebook_backward(of->args(), upstream, kept, of->launch(scratch), grad_logits, grad_codebook).code;
}

EXPORTED int gumbel_step(const Problem* of, const float* upstream, const float* kept, float* logits, float* first,
                         float* second, double lr, double beta1, double beta2, double eps, std::int64_t number,
                         const std::int64_t* anchor, float stay_penalty) {
  const Memory scratch(cc::gumbel_codebook_backward_scratch(of->problems, of->rows, of->codes, of->channels));
  const cortex_fast::Update update{first, second, lr, beta1, beta2, eps, number, anchor, stay_penalty};
  return cc::gumbel_codebook_step(of->args(), upstream, kept, update, of->launch(scratch), logits).code;
}
