// From words of the random stream to floats, and the elementary functions for it: the same arithmetic for every
// backend, without branches or calls. F is float, with W = std::uint32_t for its bits (portable.h), or a vector type of
// each.
//
// Polynomials are minimax fits (Lawson's algorithm) in the relative error of the function, in Estrin's order.
// With rounding, whether multiply_add rounds once or twice: log, exp and -log(1 - u) are within 1.5 units of 2^-24 of
// their value, a Gumbel g within 3 2^-24 max(1, |g|), a normal within 4 2^-24 of its radius, which is at most 6.77.
#pragma once

#include "cortex_fast/portable.h"

namespace cortex_fast {

// log((1 + f) 2^exponent) of f in [sqrt(1/2) - 1, sqrt(2) - 1].
template <typename F>
CORTEX_FAST_INLINE F log_of_parts(F f, F exponent) {
  const F square = f * f;
  const F p01 = multiply_add(f, F(-0.2500082f), F(0.3333333f)), p23 = multiply_add(f, F(-0.16623357f), F(0.20001227f));
  const F p45 = multiply_add(f, F(-0.13160183f), F(0.14201757f)),
          p67 = multiply_add(f, F(-0.07634497f), F(0.12761576f));
  const F p = multiply_add(square * square, multiply_add(square, p67, p45), multiply_add(square, p23, p01));
  // log 2 in two parts; the first has 9 bits, so that its product with an exponent is exact
  const F tail = multiply_add(exponent, F(-2.12194440e-4f), square * multiply_add(f, p, F(-0.5f)));
  return multiply_add(exponent, F(0.693359375f), f + tail);
}

// The exponent e with value 2^-e in [sqrt(1/2), sqrt(2)), of a positive normal float's bits; and the bits of value
// 2^-e.
template <typename W>
CORTEX_FAST_INLINE W exponent_of(W bits) {
  return shift_signed(bits - W(0x3F3504F3u), 23);
}

template <typename W>
CORTEX_FAST_INLINE W without_exponent(W bits, W exponent) {
  return bits - (exponent << 23);
}

// Natural logarithm of a positive normal float.
template <typename F>
CORTEX_FAST_INLINE F log_of(F value) {
  const auto bits = bits_of(value);
  const auto e = exponent_of(bits);
  return log_of_parts(float_of(without_exponent(bits, e)) - F(1.0f), float_of_signed(e));
}

// -log(1 - u) of u in [2^-33, 1 - 2^-24], with full relative precision: what 1 - u rounds away is added to the
// mantissa.
template <typename F>
CORTEX_FAST_INLINE F minus_log_of_complement(F u) {
  const F value = F(1.0f) - u;
  const F lost = (F(1.0f) - value) - u;
  const auto bits = bits_of(value);
  const auto e = exponent_of(bits);
  using W = decltype(bits_of(u));
  const F scale = float_of((W(127u) - e) << 23);  // 2^-e
  return -log_of_parts(multiply_add(lost, scale, float_of(without_exponent(bits, e)) - F(1.0f)), float_of_signed(e));
}

// e^x of x <= 0; below -87 it is 0. NaN stays NaN.
template <typename F>
CORTEX_FAST_INLINE F exp_of(F x) {
  const F magic = F(12582912.0f);  // 1.5 2^23: adding it rounds to a whole number, in the low bits
  const F shifted = multiply_add(x, F(1.44269504f), magic);
  const F n = shifted - magic;
  const F r = multiply_add(n, F(2.12194440e-4f), multiply_add(n, F(-0.693359375f), x));
  const F square = r * r;
  const F q01 = multiply_add(r, F(0.16666521f), F(0.49999994f)), q23 = multiply_add(r, F(0.008368711f), F(0.04166839f));
  const F q = multiply_add(square, multiply_add(square, F(0.001381461f), q23), q01);
  const F e = F(1.0f) + multiply_add(square, q, r);
  const F scaled = float_of(bits_of(e) + (bits_of(shifted) << 23));
  return where_nan(x, x, where_less(x, F(-87.0f), F(0.0f), scaled));
}

// A word of 32 random bits -> float in [2^-33, 1 - 2^-24]; float32(word) 2^-32 + 2^-33 is rounded alike everywhere.
// The caller chooses F; float by default.
template <typename F = float, typename W>
CORTEX_FAST_INLINE F uniform_of(W word) {
  // both halves are exact and their sum is rounded once: the conversion of an unsigned word, without the instruction
  const F high = float_of_signed(word >> 16), low = float_of_signed(word & W(0xFFFFu));
  const F u = multiply_add(multiply_add(high, F(65536.0f), low), F(0x1p-32f), F(0x1p-33f));
  return where_less(u, F(1.0f - 0x1p-24f), u, F(1.0f - 0x1p-24f));
}

// Gumbel(0, 1): -log(-log(1 - u)), which resolves the winning (upper) tail. It falls as the word grows.
template <typename F = float, typename W>
CORTEX_FAST_INLINE F gumbel_of(W word) {
  return -log_of(minus_log_of_complement(uniform_of<F>(word)));
}

template <typename F>
struct Pair {
  F first, second;
};

// Two standard normals of two words, by Box-Muller. The angle is float32(u float32(2 pi)): that rounding is part of the
// stream's definition.
template <typename F = float, typename W>
CORTEX_FAST_INLINE Pair<F> normals_of(W first, W second) {
  const F radius = root(F(-2.0f) * log_of(uniform_of<F>(first)));
  const F angle = uniform_of<F>(second) * F(6.2831855f);
  // quarter turns: the nearest whole number of them, from 0 to 4, and what is left, within pi / 4 on either side
  const W quarter = truncate(multiply_add(angle, F(0.63661977f), F(0.5f)));
  const F turns = float_of_signed(quarter);
  F r = multiply_add(turns, F(-1.5703125f), angle);  // the first two parts of pi / 2 have few bits: exact products
  r = multiply_add(turns, F(-4.837512969970703125e-4f), r);
  r = multiply_add(turns, F(-7.54978995489188216e-8f), r);
  const F square = r * r;
  const F s = multiply_add(square, multiply_add(square, F(-0.00019517235f), F(0.008332178f)), F(-0.16666655f));
  const F sine = multiply_add(r * square, s, r);
  const F c = multiply_add(square, multiply_add(square, F(2.443838e-05f), F(-0.0013887367f)), F(0.041666646f));
  const F cosine = multiply_add(square * square, c, multiply_add(square, F(-0.5f), F(1.0f)));
  // cosine's signs in quarters 0 1 2 3 4: + - - + +; sine's: + + - - +
  const W across_sign = ((quarter + W(1u)) & W(2u)) << 30, up_sign = (quarter & W(2u)) << 30;
  const F across = float_of(bits_of(where_odd(quarter, sine, cosine)) ^ across_sign);
  const F up = float_of(bits_of(where_odd(quarter, cosine, sine)) ^ up_sign);
  return {radius * across, radius * up};
}

}  // namespace cortex_fast
