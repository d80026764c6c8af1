// What test_transforms.py calls: each function of cortex_fast/transforms.h, of single numbers and of packs of them.
#include "cortex_fast/transforms.h"

#include "pack.h"

using namespace cortex_fast;
using namespace cortex_fast::CORTEX_FAST_LEVEL;

// `count` is a multiple of kPack.
#define FROM_WORDS(NAME, FUNCTION)                                                                             \
  extern "C" void NAME##_of_each(const uint32_t* words, int64_t count, float* out) {                           \
    for (int64_t i = 0; i < count; ++i) out[i] = FUNCTION<float>(words[i]);                                    \
  }                                                                                                            \
  extern "C" void NAME##_of_packs(const uint32_t* words, int64_t count, float* out) {                          \
    for (int64_t i = 0; i < count; i += kPack) store_floats(FUNCTION<Floats>(load_words(words + i)), out + i); \
  }
#define FROM_FLOATS(NAME, FUNCTION)                                                                 \
  extern "C" void NAME##_of_each(const float* x, int64_t count, float* out) {                       \
    for (int64_t i = 0; i < count; ++i) out[i] = FUNCTION(x[i]);                                    \
  }                                                                                                 \
  extern "C" void NAME##_of_packs(const float* x, int64_t count, float* out) {                      \
    for (int64_t i = 0; i < count; i += kPack) store_floats(FUNCTION(load_floats(x + i)), out + i); \
  }

FROM_WORDS(uniform, uniform_of)
FROM_WORDS(gumbel, gumbel_of)
FROM_FLOATS(log, log_of)
FROM_FLOATS(minus_log_of_complement, minus_log_of_complement)
FROM_FLOATS(exp, exp_of)

// first [count] words, then second [count]; out is the first normals, then the second.
extern "C" void normals_of_each(const uint32_t* words, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const auto pair = normals_of(words[i], words[count + i]);
    out[i] = pair.first;
    out[count + i] = pair.second;
  }
}

extern "C" void normals_of_packs(const uint32_t* words, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kPack) {
    const auto pair = normals_of<Floats>(load_words(words + i), load_words(words + count + i));
    store_floats(pair.first, out + i);
    store_floats(pair.second, out + count + i);
  }
}
