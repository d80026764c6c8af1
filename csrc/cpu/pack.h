// Vectors, two at a time: the elementary functions are chains of dependent instructions, and two chains side by side
// keep the processor's units busy where one would wait (measured on AVX2: see docs/notes/2026-11-22-cpu-operators.md).
//
// Floats and Words have the operations that cortex_fast/transforms.h needs of a float and of its bits. Wide has those
// of cortex_fast/philox.h, with 32-bit words in the lower halves of 64-bit lanes, as the vector multipliers of x86-64
// take and return them. Its upper halves hold anything.
#pragma once

#include "cortex_fast/philox.h"
#include "cortex_fast/portable.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cortex_fast {
namespace CORTEX_FAST_LEVEL {

// The functions of a single number, beside those of a pack.
using cortex_fast::bits_of;
using cortex_fast::float_of;
using cortex_fast::float_of_signed;
using cortex_fast::multiply_add;
using cortex_fast::product;
using cortex_fast::root;
using cortex_fast::shift_signed;
using cortex_fast::truncate;
using cortex_fast::where_less;
using cortex_fast::where_nan;
using cortex_fast::where_odd;
using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVector __attribute__((vector_size(kVectorBytes)));
typedef uint32_t WordVector __attribute__((vector_size(kVectorBytes)));
typedef uint64_t WideVector __attribute__((vector_size(kVectorBytes)));

constexpr int64_t kPack = 2 * kVectorBytes / 4;  // floats or words of a pack

struct Words {
  WordVector v[2];

  Words() = default;
  CORTEX_FAST_MEMBER explicit Words(uint32_t value) : v{WordVector{} + value, WordVector{} + value} {}
  CORTEX_FAST_MEMBER Words(WordVector first, WordVector second) : v{first, second} {}
};

struct Floats {
  FloatVector v[2];

  Floats() = default;
  CORTEX_FAST_MEMBER explicit Floats(float value) : v{FloatVector{} + value, FloatVector{} + value} {}
  CORTEX_FAST_MEMBER Floats(FloatVector first, FloatVector second) : v{first, second} {}
};

CORTEX_FAST_INLINE Floats operator+(const Floats& a, const Floats& b) { return {a.v[0] + b.v[0], a.v[1] + b.v[1]}; }
CORTEX_FAST_INLINE Floats operator-(const Floats& a, const Floats& b) { return {a.v[0] - b.v[0], a.v[1] - b.v[1]}; }
CORTEX_FAST_INLINE Floats operator*(const Floats& a, const Floats& b) { return {a.v[0] * b.v[0], a.v[1] * b.v[1]}; }
CORTEX_FAST_INLINE Floats operator/(const Floats& a, const Floats& b) { return {a.v[0] / b.v[0], a.v[1] / b.v[1]}; }
CORTEX_FAST_INLINE Floats operator-(const Floats& a) { return {-a.v[0], -a.v[1]}; }

CORTEX_FAST_INLINE Words operator+(const Words& a, const Words& b) { return {a.v[0] + b.v[0], a.v[1] + b.v[1]}; }
CORTEX_FAST_INLINE Words operator-(const Words& a, const Words& b) { return {a.v[0] - b.v[0], a.v[1] - b.v[1]}; }
CORTEX_FAST_INLINE Words operator^(const Words& a, const Words& b) { return {a.v[0] ^ b.v[0], a.v[1] ^ b.v[1]}; }
CORTEX_FAST_INLINE Words operator&(const Words& a, const Words& b) { return {a.v[0] & b.v[0], a.v[1] & b.v[1]}; }
CORTEX_FAST_INLINE Words operator<<(const Words& a, int n) { return {a.v[0] << n, a.v[1] << n}; }
CORTEX_FAST_INLINE Words operator>>(const Words& a, int n) { return {a.v[0] >> n, a.v[1] >> n}; }

CORTEX_FAST_INLINE Words bits_of(const Floats& a) { return {(WordVector)a.v[0], (WordVector)a.v[1]}; }
CORTEX_FAST_INLINE Floats float_of(const Words& a) { return {(FloatVector)a.v[0], (FloatVector)a.v[1]}; }

CORTEX_FAST_INLINE Words shift_signed(const Words& a, int n) {
  return {(WordVector)((IntVector)a.v[0] >> n), (WordVector)((IntVector)a.v[1] >> n)};
}

CORTEX_FAST_INLINE Floats float_of_signed(const Words& a) {
  return {__builtin_convertvector((IntVector)a.v[0], FloatVector),
          __builtin_convertvector((IntVector)a.v[1], FloatVector)};
}

// Rounds towards zero.
CORTEX_FAST_INLINE Words truncate(const Floats& a) {
  return {(WordVector) __builtin_convertvector(a.v[0], IntVector),
          (WordVector) __builtin_convertvector(a.v[1], IntVector)};
}

CORTEX_FAST_INLINE FloatVector multiply_add(FloatVector a, FloatVector b, FloatVector c) {
#if defined(__AVX512F__)
  return (FloatVector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (FloatVector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (FloatVector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

CORTEX_FAST_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
  return {multiply_add(a.v[0], b.v[0], c.v[0]), multiply_add(a.v[1], b.v[1], c.v[1])};
}

CORTEX_FAST_INLINE FloatVector root(FloatVector a) {
#if defined(__AVX512F__)
  return (FloatVector)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)a);
#elif defined(__AVX2__)
  return (FloatVector)_mm256_sqrt_ps((__m256)a);
#elif defined(__x86_64__)
  return (FloatVector)_mm_sqrt_ps((__m128)a);
#elif defined(__aarch64__)
  return (FloatVector)vsqrtq_f32((float32x4_t)a);
#else
  for (int i = 0; i < kVectorBytes / 4; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

CORTEX_FAST_INLINE Floats root(const Floats& a) { return {root(a.v[0]), root(a.v[1])}; }

// Where a < b the first value, else the second; where the lowest bit is set; where a is NaN.
CORTEX_FAST_INLINE Floats where_less(const Floats& a, const Floats& b, const Floats& yes, const Floats& no) {
  return {a.v[0] < b.v[0] ? yes.v[0] : no.v[0], a.v[1] < b.v[1] ? yes.v[1] : no.v[1]};
}

CORTEX_FAST_INLINE Floats where_odd(const Words& a, const Floats& yes, const Floats& no) {
  return {(IntVector)(a.v[0] << 31) < 0 ? yes.v[0] : no.v[0], (IntVector)(a.v[1] << 31) < 0 ? yes.v[1] : no.v[1]};
}

CORTEX_FAST_INLINE Floats where_nan(const Floats& a, const Floats& yes, const Floats& no) {
  return {a.v[0] != a.v[0] ? yes.v[0] : no.v[0], a.v[1] != a.v[1] ? yes.v[1] : no.v[1]};
}

CORTEX_FAST_INLINE Floats larger(const Floats& a, const Floats& b) { return where_less(a, b, b, a); }

CORTEX_FAST_INLINE Words smaller(const Words& a, const Words& b) {
  return {a.v[0] < b.v[0] ? a.v[0] : b.v[0], a.v[1] < b.v[1] ? a.v[1] : b.v[1]};
}

// Memory of any alignment. Named in full wherever it is used: auto would drop the attributes.
typedef FloatVector FloatMemory __attribute__((aligned(4), may_alias));
typedef WordVector WordMemory __attribute__((aligned(4), may_alias));

CORTEX_FAST_INLINE Floats load_floats(const float* from) {
  const FloatMemory* vectors = reinterpret_cast<const FloatMemory*>(from);
  return {vectors[0], vectors[1]};
}

CORTEX_FAST_INLINE Words load_words(const uint32_t* from) {
  const WordMemory* vectors = reinterpret_cast<const WordMemory*>(from);
  return {vectors[0], vectors[1]};
}

CORTEX_FAST_INLINE void store_floats(const Floats& pack, float* to) {
  FloatMemory* vectors = reinterpret_cast<FloatMemory*>(to);
  vectors[0] = pack.v[0];
  vectors[1] = pack.v[1];
}

// a[0], b[0], a[1], b[1], ...: the first half of it, and the second; of floats and of 64-bit lanes.
#if defined(__clang__) || __GNUC__ >= 12
#define CORTEX_FAST_SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CORTEX_FAST_SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

CORTEX_FAST_INLINE FloatVector interleave_low(FloatVector a, FloatVector b) {
#if defined(__AVX512F__)
  return CORTEX_FAST_SHUFFLE(IntVector, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return CORTEX_FAST_SHUFFLE(IntVector, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return CORTEX_FAST_SHUFFLE(IntVector, a, b, 0, 4, 1, 5);
#endif
}

CORTEX_FAST_INLINE FloatVector interleave_high(FloatVector a, FloatVector b) {
#if defined(__AVX512F__)
  return CORTEX_FAST_SHUFFLE(IntVector, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return CORTEX_FAST_SHUFFLE(IntVector, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return CORTEX_FAST_SHUFFLE(IntVector, a, b, 2, 6, 3, 7);
#endif
}

CORTEX_FAST_INLINE WideVector interleave_low(WideVector a, WideVector b) {
#if defined(__AVX512F__)
  return CORTEX_FAST_SHUFFLE(WideVector, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#elif defined(__AVX2__)
  return CORTEX_FAST_SHUFFLE(WideVector, a, b, 0, 4, 1, 5);
#else
  return CORTEX_FAST_SHUFFLE(WideVector, a, b, 0, 2);
#endif
}

CORTEX_FAST_INLINE WideVector interleave_high(WideVector a, WideVector b) {
#if defined(__AVX512F__)
  return CORTEX_FAST_SHUFFLE(WideVector, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
  return CORTEX_FAST_SHUFFLE(WideVector, a, b, 2, 6, 3, 7);
#else
  return CORTEX_FAST_SHUFFLE(WideVector, a, b, 1, 3);
#endif
}

#undef CORTEX_FAST_SHUFFLE

constexpr int kFloats = kVectorBytes / 4;  // of one vector

// A square of vectors, its rows becoming its columns: each round deals the upper half's rows between the lower's.
CORTEX_FAST_INLINE void transpose(FloatVector rows[kFloats]) {
#pragma GCC unroll 4
  for (int round = 1; round < kFloats; round *= 2) {
    FloatVector dealt[kFloats];
#pragma GCC unroll 8
    for (int i = 0; i < kFloats / 2; ++i) {
      dealt[2 * i] = interleave_low(rows[i], rows[i + kFloats / 2]);
      dealt[2 * i + 1] = interleave_high(rows[i], rows[i + kFloats / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) rows[i] = dealt[i];
  }
}

constexpr int kLanes = 2 * kVectorBytes / 8;  // of a Wide

struct Wide {
  WideVector v[2];
};

CORTEX_FAST_INLINE Wide operator^(const Wide& a, const Wide& b) { return {{a.v[0] ^ b.v[0], a.v[1] ^ b.v[1]}}; }

CORTEX_FAST_INLINE Wide operator^(const Wide& a, uint32_t b) {
  return {{a.v[0] ^ static_cast<uint64_t>(b), a.v[1] ^ static_cast<uint64_t>(b)}};
}

CORTEX_FAST_INLINE WideVector product(WideVector word, uint32_t multiplier) {
#if defined(__AVX512F__)
  return (WideVector)_mm512_maskz_mul_epu32(0xFF, (__m512i)word, _mm512_set1_epi64(multiplier));
#elif defined(__AVX2__)
  return (WideVector)_mm256_mul_epu32((__m256i)word, _mm256_set1_epi64x(multiplier));
#elif defined(__x86_64__)
  return (WideVector)_mm_mul_epu32((__m128i)word, _mm_set1_epi64x(multiplier));
#else
  return (word & 0xFFFFFFFFu) * static_cast<uint64_t>(multiplier);
#endif
}

CORTEX_FAST_INLINE void product(const Wide& word, uint32_t multiplier, Wide& high, Wide& low) {
  low = {{product(word.v[0], multiplier), product(word.v[1], multiplier)}};
  high = {{low.v[0] >> 32, low.v[1] >> 32}};
}

}  // namespace CORTEX_FAST_LEVEL
}  // namespace cortex_fast
