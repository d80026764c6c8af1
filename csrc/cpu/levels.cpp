// The one place that chooses between the operators' copies, one for each level (cortex_fast/run.h).
#include "cortex_fast/conv3x3.h"
#include "cortex_fast/gather_error.h"
#include "cortex_fast/gumbel_codebook.h"
#include "cortex_fast/nearest_code.h"
#include "cortex_fast/random_stream.h"
#include "cortex_fast/run.h"
#include "cortex_fast/smoothgrad_noise.h"
#include "cortex_fast/token_saliency.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#define CORTEX_FAST_LEVEL baseline
#include "operators.inc"
#undef CORTEX_FAST_LEVEL

#ifdef CORTEX_FAST_X86_LEVELS
#define CORTEX_FAST_LEVEL avx2
#include "operators.inc"
#undef CORTEX_FAST_LEVEL
#define CORTEX_FAST_LEVEL avx512
#include "operators.inc"
#undef CORTEX_FAST_LEVEL
#define CORTEX_FAST_AT_LEVEL(call) \
  switch (run.level) {             \
    case Level::kAvx512:           \
      return avx512::call;         \
    case Level::kAvx2:             \
      return avx2::call;           \
    case Level::kBaseline:         \
      return baseline::call;       \
  }
#else
#define CORTEX_FAST_AT_LEVEL(call) return baseline::call;
#endif

namespace cortex_fast {

void advise_large_pages(void* memory, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

std::vector<Level> levels() {
  std::vector<Level> available{Level::kBaseline};
#ifdef CORTEX_FAST_X86_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    available.push_back(Level::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      available.push_back(Level::kAvx512);
    }
  }
#endif
  return available;
}

void random_stream(Stream stream, std::uint64_t seed, const std::int64_t* items, const std::int64_t* draws,
                   const StreamSizes& sizes, float* out, const Run& run) {
  CORTEX_FAST_AT_LEVEL(random_stream(stream, seed, items, draws, sizes, out, run))
}

void gumbel_codebook(const GumbelCodebook& args, float* embedding, std::int64_t* index, const Run& run) {
  CORTEX_FAST_AT_LEVEL(gumbel_codebook(args, embedding, index, run))
}

void gumbel_codebook_backward(const float* upstream, const GumbelCodebook& args, const std::int64_t* index,
                              float* grad_logits, float* grad_codebook, const Run& run) {
  CORTEX_FAST_AT_LEVEL(gumbel_codebook_backward(upstream, args, index, grad_logits, grad_codebook, run))
}

void gumbel_codebook_step(const GumbelCodebook& args, const float* upstream, const Update& update, float* logits,
                          const Run& run) {
  CORTEX_FAST_AT_LEVEL(gumbel_codebook_step(args, upstream, update, logits, run))
}

void conv3x3(const Conv3x3& args, const Run& run) { CORTEX_FAST_AT_LEVEL(conv3x3(args, run)) }

void gather_error(const GatherError& args, float* error, const Run& run) {
  CORTEX_FAST_AT_LEVEL(gather_error(args, error, run))
}

void nearest_code(const NearestCode& args, std::int64_t* index, const Run& run) {
  CORTEX_FAST_AT_LEVEL(nearest_code(args, index, run))
}

template <typename T>
void smoothgrad_noise(const NoisyCopies<T>& args, T* out, const Run& run) {
  CORTEX_FAST_AT_LEVEL(smoothgrad_noise(args, out, run))
}

template void smoothgrad_noise<float>(const NoisyCopies<float>&, float*, const Run&);
template void smoothgrad_noise<BFloat16>(const NoisyCopies<BFloat16>&, BFloat16*, const Run&);
template void smoothgrad_noise<Float16>(const NoisyCopies<Float16>&, Float16*, const Run&);

template <typename T>
void token_saliency(const Gradients<T>& grads, Reduction reduction, float* out, const Run& run) {
  CORTEX_FAST_AT_LEVEL(token_saliency(grads, reduction, out, run))
}

template void token_saliency<float>(const Gradients<float>&, Reduction, float*, const Run&);
template void token_saliency<BFloat16>(const Gradients<BFloat16>&, Reduction, float*, const Run&);
template void token_saliency<Float16>(const Gradients<Float16>&, Reduction, float*, const Run&);

}  // namespace cortex_fast
