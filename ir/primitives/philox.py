"""Philox4x32-10 and the transforms of its bits, in NumPy, element by element reproducible.

The bits of element i of a random operation depend on three integers only: the generator's seed,
the operation's counter, and i. So they are the same eagerly and compiled, in whatever order and on
however many threads. `codegen/templates/prelude_random.c` holds the same functions in C.

Philox turns a 64-bit key and a 128-bit counter into four 32-bit words. The key is the seed; the
counter is (block, operation) with 64 bits each. Note [Which words an element takes]:

    bits, bernoulli, uniform but float64    word i % 4 of block i // 4
    integers, uniform float64               words 2 * (i % 2) and the next of block i // 2
    normal but float64                      words 2 * (i // 2 % 2) and the next of block i // 4
    normal float64                          all four words of block i // 2

Of two words the first is the low half. Normal numbers come in pairs from the same words: cos for
even i, sin for odd i.

Note [Same bits in C]: everything here is made of operations that IEEE 754 defines to the last bit
(+ - * / sqrt, conversions of integers) in one order, so NumPy and C agree bit for bit; no libm.
C must not contract a * b + c to fma (`-ffp-contract=off`).

Start reading at `words32`, then `normal64`.

Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, log
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # Salmon et al., table 2
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1: steps of the key
_ROUNDS = 10
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_CHUNK = 4096  # blocks at a time: the working arrays stay in the L2 cache


def philox4x32(seed: int, counter: int, first: int, blocks: int) -> Array:
    """The words of consecutive blocks.

    Args:
        seed: the key, modulo 2^64.
        counter: number of the operation, modulo 2^64.
        first: number of the first block.
        blocks: how many.
    Returns:
        uint32, shape (blocks, 4).
    """
    words = np.empty((blocks, 4), np.uint32)
    for start in range(0, blocks, _CHUNK):
        part = words[start : start + _CHUNK]
        _fill(part, seed & (2**64 - 1), counter & (2**64 - 1), first + start)
    return words


def _fill(words: Array, seed: int, counter: int, first: int) -> None:
    """Ten rounds of Philox on every row; words live in the low halves of uint64."""
    block = np.arange(len(words), dtype=np.uint64) + np.uint64(first)
    c0, c1 = block & _LOW, block >> _32
    c2 = np.full_like(c0, counter & 0xFFFFFFFF)
    c3 = np.full_like(c0, counter >> 32)
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(_ROUNDS):
        np.multiply(c0, _M0, out=p0)
        np.multiply(c2, _M1, out=p1)
        # (c0, c1, c2, c3) <- (hi(p1) ^ c1 ^ k0, lo(p1), hi(p0) ^ c3 ^ k1, lo(p0)), in place
        np.right_shift(p1, _32, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(p0, _32, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(p1, _LOW, out=c1)
        np.bitwise_and(p0, _LOW, out=c3)
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    for lane, c in enumerate((c0, c1, c2, c3)):
        words[:, lane] = c


def words32(seed: int, counter: int, n: int) -> Array:
    """One 32-bit word for each of n elements: uint32, shape (n,)."""
    return philox4x32(seed, counter, 0, -(-n // 4)).reshape(-1)[:n]


def words64(seed: int, counter: int, n: int) -> Array:
    """One 64-bit word for each of n elements: uint64, shape (n,)."""
    pairs = philox4x32(seed, counter, 0, -(-n // 2)).reshape(-1, 2)
    return _joined(pairs[:, 0], pairs[:, 1])[:n]


def _joined(low: Array, high: Array) -> Array:
    return (high.astype(np.uint64) << _32) | low


# ---- uniform ------------------------------------------------------------------------------------


def uniform(seed: int, counter: int, n: int, digits: int) -> Array:
    """n multiples of 2^-digits in [0, 1), all alike likely; `digits` of the result's significand.

    Returns:
        float64 for 53 digits, else float32, shape (n,); exact.
    """
    if digits == 53:
        return (words64(seed, counter, n) >> np.uint64(11)) * 2.0**-53
    top = words32(seed, counter, n) >> np.uint32(32 - digits)
    return top.astype(np.float32) * np.float32(2.0**-digits)


def bernoulli(seed: int, counter: int, p: Array) -> Array:
    """True with probability `p`, rounded up to a multiple of 2^-32; bool, of the shape of `p`."""
    drawn = words32(seed, counter, p.size).reshape(p.shape) * 2.0**-32
    return np.asarray(drawn < p.astype(np.float64))


def integers(seed: int, counter: int, n: int, low: int, high: int) -> Array:
    """n integers in [low, high): low + floor(word * (high - low) / 2^64); int64, shape (n,).

    The probability of each differs from 1 / (high - low) by less than 2^-64.
    """
    span = high - low
    word = words64(seed, counter, n)
    s_low, s_high = np.uint64(span & 0xFFFFFFFF), np.uint64(span >> 32)
    # The high half of a 64 x 64 bit product, from 32-bit halves; no sum below exceeds 64 bits.
    cross = (word >> _32) * s_low + ((word & _LOW) * s_low >> _32)
    product = cross >> _32
    if span >> 32:
        product += ((word & _LOW) * s_high + (cross & _LOW)) >> _32
        product += (word >> _32) * s_high
    return (product + np.uint64(low & (2**64 - 1))).astype(np.int64)


# ---- normal -------------------------------------------------------------------------------------

# log(m) = 2 s (1 + s^2/3 + s^4/5 + ...) with s = (m-1)/(m+1): for m in [sqrt(1/2), sqrt(2)),
# |s| < 0.1716, and what follows s^22 is below 1e-18 of the sum.
LOG_SERIES = tuple(1.0 / (2 * k + 1) for k in range(11, 0, -1))
# Taylor: for |a| <= pi/4 the first term left out is below 1e-18 in both.
SIN_SERIES = tuple((-1.0) ** k / factorial(2 * k + 1) for k in range(8, 0, -1))
COS_SERIES = tuple((-1.0) ** k / factorial(2 * k) for k in range(9, 0, -1))
LN2_HIGH = float.fromhex("0x1.62e42fefp-1")  # 33 bits of log(2): its product with an exponent
LN2_LOW = float.fromhex("0x1.473de6af278edp-34")  # is exact; the rest
SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
TWO_PI = float.fromhex("0x1.921fb54442d18p+2")
assert LN2_HIGH + LN2_LOW == log(2)


def normal32(seed: int, counter: int, n: int) -> Array:
    """n normal numbers from 32-bit uniforms (magnitude at most 6.77); float64, shape (n,)."""
    pairs = philox4x32(seed, counter, 0, -(-n // 4)).reshape(-1, 2)
    radius, turn = pairs[:, 0].astype(np.float64), pairs[:, 1].astype(np.float64)
    return _chunked(_box_muller, (radius + 0.5) * 2.0**-32, turn * 2.0**-32)[:n]


def normal64(seed: int, counter: int, n: int) -> Array:
    """n normal numbers from 53-bit uniforms (magnitude at most 8.58); float64, shape (n,)."""
    words = philox4x32(seed, counter, 0, -(-n // 2))
    radius = _joined(words[:, 0], words[:, 1]) >> np.uint64(11)
    turn = _joined(words[:, 2], words[:, 3]) >> np.uint64(11)
    return _chunked(_box_muller, (radius + np.uint64(1)) * 2.0**-53, turn * 2.0**-53)[:n]


def _chunked(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """`function` on pieces small enough for the cache; two results per pair, interleaved."""
    out = np.empty((len(a), 2))
    for start in range(0, len(a), _CHUNK):
        piece = slice(start, start + _CHUNK)
        out[piece] = function(a[piece], b[piece])
    return out.reshape(-1)


def _box_muller(u: Array, t: Array) -> Array:
    """Two independent normal numbers per pair: sqrt(-2 log u) times cos and sin of 2 pi t.

    Args:
        u: float64 in (0, 1]; t: float64 in [0, 1); shape (n,).
    Source: Box and Muller, Annals of Mathematical Statistics 29 (1958), 610-611.
    """
    radius = np.sqrt(-2.0 * exact_log(u))
    cosine, sine = exact_cos_sin(t)
    return np.stack((radius * cosine, radius * sine), axis=-1)


def exact_log(u: Array) -> Array:
    """Natural logarithm of normal positive float64, within 2 units in the last place."""
    mantissa, exponent = _split(u)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    tail = _horner(LOG_SERIES, z) * z
    return exponent * LN2_HIGH + (2.0 * s + (2.0 * s * tail + exponent * LN2_LOW))


def _split(u: Array) -> tuple[Array, Array]:
    """u = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)); both float64."""
    bits = np.ascontiguousarray(u).view(np.int64)
    exponent = (bits >> 52) - 1022
    mantissa = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000).view(np.float64)
    low = mantissa < SQRT_HALF
    return np.where(low, mantissa + mantissa, mantissa), (exponent - low).astype(np.float64)


def exact_cos_sin(t: Array) -> tuple[Array, Array]:
    """cos and sin of 2 pi t for t in [0, 1), float64."""
    quadrant = (t * 4.0 + 0.5).astype(np.int64)  # the nearest multiple of a quarter turn
    a = (t - quadrant * 0.25) * TWO_PI  # the difference is exact; |a| <= pi/4
    z = a * a
    sine = a + a * (_horner(SIN_SERIES, z) * z)
    cosine = 1.0 + _horner(COS_SERIES, z) * z
    odd = (quadrant & 1) == 1
    first, second = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    minus_first = ((quadrant + 1) & 2) == 2
    minus_second = (quadrant & 2) == 2
    return np.where(minus_first, -first, first), np.where(minus_second, -second, second)


def _horner(series: tuple[float, ...], z: Array) -> Array:
    total = np.full_like(z, series[0])
    for coefficient in series[1:]:
        total *= z
        total += coefficient
    return total
