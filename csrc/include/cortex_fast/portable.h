// Compiler-dependent parts of the headers that the C++ and the CUDA kernels share.
//
// CORTEX_FAST_INLINE: a function of internal linkage, always inlined: it is compiled with the caller's instruction set.
// CORTEX_FAST_MEMBER: the same for a member.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CORTEX_FAST_INLINE static __host__ __device__ __forceinline__
#define CORTEX_FAST_MEMBER __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define CORTEX_FAST_INLINE static __forceinline
#define CORTEX_FAST_MEMBER __forceinline
#else
#define CORTEX_FAST_INLINE static inline __attribute__((always_inline))
#define CORTEX_FAST_MEMBER inline __attribute__((always_inline))
#endif

namespace cortex_fast {

// a b + c, rounded once where the processor has the instruction, else twice: never by a library call.
CORTEX_FAST_INLINE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

CORTEX_FAST_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

CORTEX_FAST_INLINE float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

CORTEX_FAST_INLINE std::uint32_t shift_signed(std::uint32_t bits, int n) {
  return static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> n);
}

CORTEX_FAST_INLINE float float_of_signed(std::uint32_t value) {
  return static_cast<float>(static_cast<std::int32_t>(value));
}

CORTEX_FAST_INLINE std::uint32_t truncate(float value) {
  return static_cast<std::uint32_t>(static_cast<std::int32_t>(value));
}

CORTEX_FAST_INLINE float root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}

CORTEX_FAST_INLINE float where_less(float a, float b, float yes, float no) { return a < b ? yes : no; }
CORTEX_FAST_INLINE float where_odd(std::uint32_t a, float yes, float no) { return (a & 1u) != 0 ? yes : no; }
CORTEX_FAST_INLINE float where_nan(float a, float yes, float no) { return a != a ? yes : no; }

}  // namespace cortex_fast
