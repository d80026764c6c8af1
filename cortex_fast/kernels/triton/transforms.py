"""From words of the random stream to floats, and the elementary functions for it: csrc/include/cortex_fast/transforms.h
again, constant by constant and in the same order, so that its bounds on the errors hold here too.

Bound: 25 to 40 float operations a number, without branches, calls or special functions: tl.log and tl.exp are other
approximations on every device, and a selected token could differ between backends.
"""

import triton
import triton.language as tl


@triton.jit
def log_of_parts(f, exponent):
    """log((1 + f) 2^exponent) of f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    square = f * f
    p01 = tl.fma(f, -0.2500082, 0.3333333)
    p23 = tl.fma(f, -0.16623357, 0.20001227)
    p45 = tl.fma(f, -0.13160183, 0.14201757)
    p67 = tl.fma(f, -0.07634497, 0.12761576)
    p = tl.fma(square * square, tl.fma(square, p67, p45), tl.fma(square, p23, p01))
    # log 2 in two parts; the first has 9 bits, so that its product with an exponent is exact
    tail = tl.fma(exponent, -2.12194440e-4, square * tl.fma(f, p, -0.5))
    return tl.fma(exponent, 0.693359375, f + tail)


@triton.jit
def exponent_of(bits):
    """The exponent e with value 2^-e in [sqrt(1/2), sqrt(2)), int32, of a positive normal float's bits."""
    return (bits - 0x3F3504F3) >> 23


@triton.jit
def log_of(value):
    """Natural logarithm of a positive normal float."""
    bits = value.to(tl.int32, bitcast=True)
    e = exponent_of(bits)
    return log_of_parts((bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0, e.to(tl.float32))


@triton.jit
def minus_log_of_complement(u):
    """-log(1 - u) of u in [2^-33, 1 - 2^-24]: what 1 - u rounds away is added to the mantissa."""
    value = 1.0 - u
    lost = (1.0 - value) - u
    bits = value.to(tl.int32, bitcast=True)
    e = exponent_of(bits)
    scale = ((127 - e) << 23).to(tl.float32, bitcast=True)  # 2^-e
    mantissa = (bits - (e << 23)).to(tl.float32, bitcast=True)
    return -log_of_parts(tl.fma(lost, scale, mantissa - 1.0), e.to(tl.float32))


@triton.jit
def exp_of(x):
    """e^x of x <= 0; below -87 it is 0. NaN stays NaN."""
    shifted = tl.fma(x, 1.44269504, 12582912.0)  # 1.5 2^23: adding it rounds to a whole number, in the low bits
    n = shifted - 12582912.0
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    square = r * r
    q01 = tl.fma(r, 0.16666521, 0.49999994)
    q23 = tl.fma(r, 0.008368711, 0.04166839)
    q = tl.fma(square, tl.fma(square, 0.001381461, q23), q01)
    e = 1.0 + tl.fma(square, q, r)
    bits = e.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return tl.where(x != x, x, tl.where(x < -87.0, 0.0, bits.to(tl.float32, bitcast=True)))


@triton.jit
def uniform_of(word):
    """A uint32 word of random bits -> float32 in [2^-33, 1 - 2^-24]; conversion and sum are rounded once each."""
    u = tl.fma(word.to(tl.float32), 2.0**-32, 2.0**-33)
    return tl.where(u < 1.0 - 2.0**-24, u, 1.0 - 2.0**-24)


@triton.jit
def gumbel_of(word):
    """Gumbel(0, 1): -log(-log(1 - u)), which resolves the winning (upper) tail. It falls as the word grows."""
    return -log_of(minus_log_of_complement(uniform_of(word)))


@triton.jit
def normals_of(first, second):
    """Two standard normals of two words, by Box-Muller; the angle's rounding is part of the stream's definition."""
    radius = tl.sqrt_rn(-2.0 * log_of(uniform_of(first)))
    angle = uniform_of(second) * 6.2831855
    # quarter turns: the nearest whole number of them, from 0 to 4, and what is left, within pi / 4 on either side
    quarter = tl.fma(angle, 0.63661977, 0.5).to(tl.int32)
    turns = quarter.to(tl.float32)
    r = tl.fma(turns, -1.5703125, angle)  # the first two parts of pi / 2 have few bits: exact products
    r = tl.fma(turns, -4.837512969970703125e-4, r)
    r = tl.fma(turns, -7.54978995489188216e-8, r)
    square = r * r
    s = tl.fma(square, tl.fma(square, -0.00019517235, 0.008332178), -0.16666655)
    sine = tl.fma(r * square, s, r)
    c = tl.fma(square, tl.fma(square, 2.443838e-05, -0.0013887367), 0.041666646)
    cosine = tl.fma(square * square, c, tl.fma(square, -0.5, 1.0))
    # cosine's signs in quarters 0 1 2 3 4: + - - + +; sine's: + + - - +
    odd = (quarter & 1) != 0
    across = tl.where(odd, sine, cosine).to(tl.int32, bitcast=True) ^ (((quarter + 1) & 2) << 30)
    up = tl.where(odd, cosine, sine).to(tl.int32, bitcast=True) ^ ((quarter & 2) << 30)
    return radius * across.to(tl.float32, bitcast=True), radius * up.to(tl.float32, bitcast=True)
