// 16-bit floats in memory: loads are exact, stores round to the nearest, ties to even. There are no branches, so that
// loops become vector code on processors without an instruction for it. GPUs have one.
#pragma once

#include "cortex_fast/portable.h"

namespace cortex_fast {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

CORTEX_FAST_INLINE float load(float value) { return value; }

CORTEX_FAST_INLINE float load(BFloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

CORTEX_FAST_INLINE float load(Float16 value) {
#if defined(__CUDA_ARCH__)
  float loaded;
  asm("cvt.f32.f16 %0, %1;" : "=f"(loaded) : "h"(value.bits));
  return loaded;
#else
  const std::uint32_t magnitude = (value.bits & 0x7FFFu) << 13;
  const std::uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);  // the exponents' biases differ by 112
  const std::uint32_t special = magnitude | 0x7F800000u;                 // infinity and NaN
  return float_of((magnitude >= 0x0F800000u ? special : finite) | (value.bits & 0x8000u) << 16);
#endif
}

CORTEX_FAST_INLINE void store(float value, float& to) { to = value; }

CORTEX_FAST_INLINE void store(float value, BFloat16& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<std::uint16_t>(value != value ? (bits >> 16 | 0x40u) : rounded);
#endif
}

CORTEX_FAST_INLINE void store(float value, Float16& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  const std::uint32_t sign = bits_of(value) & 0x80000000u, magnitude = bits_of(value) ^ sign;
  // adding 1/2 rounds a number below 2^-14 to a multiple of 2^-24, in the low bits
  const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
  const std::uint32_t normal = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  const std::uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const std::uint32_t finite = magnitude < 0x38800000u ? small : normal;
  to.bits = static_cast<std::uint16_t>((magnitude >= 0x47800000u ? special : finite) | sign >> 16);
#endif
}

}  // namespace cortex_fast
