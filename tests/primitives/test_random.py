"""Random primitives: published bits, an independent scalar Philox, C bit for bit, distributions."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tracegrad.codegen.prelude import helpers_for
from tracegrad.ir import dtypes, ops
from tracegrad.ir.primitives import philox

MASK = 2**32 - 1
STATES = [(0, 0), (1, 2), (-1, -1), (0x1234_5678_9ABC_DEF0, 2**33 + 7), (-(2**63), 2**63 - 1)]


def state(seed: int, counter: int) -> np.ndarray:
    return np.array([seed, counter], np.int64)


# ---- bits ---------------------------------------------------------------------------------------


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Written from the paper's figure with Python integers, apart from the kernel under test."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k, right & MASK, left >> 32 ^ d ^ m, left & MASK
        k, m = k + 0x9E3779B9 & MASK, m + 0xBB67AE85 & MASK
    return [a, b, c, d]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # Random123's kat_vectors, philox4x32 with 10 rounds
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([MASK] * 4, [MASK] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_known_answers(counter: list[int], key: list[int], answer: str) -> None:
    expected = [int(word, 16) for word in answer.split()]
    block, op = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
    assert philox.philox4x32(key[0] | key[1] << 32, op, block, 1)[0].tolist() == expected
    assert scalar_philox(counter, key) == expected


@pytest.mark.parametrize(("seed", "counter"), STATES)
def test_bits_are_those_of_a_scalar_philox_at_any_block(seed: int, counter: int) -> None:
    for first in (0, 4095, 2**32 - 3, 2**62):
        words = philox.philox4x32(seed, counter, first, 9)
        for i, row in enumerate(words.tolist()):
            block = first + i
            counts = [block & MASK, block >> 32, counter & MASK, counter >> 32 & MASK]
            assert row == scalar_philox(counts, [seed & MASK, seed >> 32 & MASK])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16383, 16385])
def test_elements_do_not_depend_on_how_many_are_drawn(size: int) -> None:
    whole, part = (20000,), (size,)
    s = state(3, 4)
    for dtype in dtypes.FLOATS:
        for op in (ops.random_uniform, ops.random_normal):
            few, many = op(s, shape=part, dtype=dtype), op(s, shape=whole, dtype=dtype)
            assert few.tobytes() == many[:size].tobytes()
    few = ops.random_randint(s, low=-5, high=70, shape=part, dtype=dtypes.int64)
    many = ops.random_randint(s, low=-5, high=70, shape=whole, dtype=dtypes.int64)
    assert few.tobytes() == many[:size].tobytes()


def test_seed_and_counter_change_the_bits() -> None:
    draws = [ops.random_bits(state(*s), shape=(64,)).tobytes() for s in STATES]
    assert len(set(draws)) == len(STATES)


# ---- generated code -----------------------------------------------------------------------------

_C_TYPES = {
    "f32": ("float", np.float32),
    "f64": ("double", np.float64),
    "f16": ("float", np.float32),  # the narrow types compute in float
    "bf16": ("float", np.float32),
}
_CALLS = {
    "tg_random_bits": ("uint32_t", np.uint32, ""),
    "tg_random_randint": ("int64_t", np.int64, ", -7, 93"),
    "wide_randint": ("int64_t", np.int64, ", -9000000000000000000, 9000000000000000001"),
}
for _short, (_c, _np) in _C_TYPES.items():
    for _name in ("uniform", "normal"):
        _CALLS[f"tg_random_{_name}_{_short}"] = (_c, _np, "")
    _CALLS[f"tg_random_bernoulli_{_short}"] = (_c, _np, ", p[k]")

Compiled = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """`compiled(name, seed, counter, first, n, p)`: the C helper at n elements from `first` on."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder: Path = tmp_path_factory.mktemp("random")
    names = [name.replace("wide_", "tg_random_") for name in _CALLS]
    loops = "\n".join(
        f"void loop_{name}(uint64_t s, uint64_t c, uint64_t i, int64_t n, double *p, {c} *out)\n"
        f"{{ for (int64_t k = 0; k < n; k++) out[k] = {called}(s, c, i + k{more}); }}"
        for (name, (c, _, more)), called in zip(_CALLS.items(), names, strict=True)
    )
    text = "#include <stdint.h>\n" + helpers_for(names) + "\n" + loops
    (folder / "random.c").write_text(text)
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
    command = ["gcc", *flags, "-Wall", "-Werror", "-Wno-unused-function", "-shared", "-fPIC",
               "-o", "random.so", "random.c"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "random.so"))

    def call(name: str, seed: int, counter: int, first: int, n: int, p: np.ndarray) -> np.ndarray:
        out = np.empty(n, _CALLS[name][1])
        u64 = ctypes.c_uint64
        getattr(library, f"loop_{name}")(
            u64(seed), u64(counter), u64(first), ctypes.c_int64(n),
            p.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        return out

    return call


N = 100_000
P = np.random.default_rng(5).random(N)
DTYPE = {
    "f32": dtypes.float32,
    "f64": dtypes.float64,
    "f16": dtypes.float16,
    "bf16": dtypes.bfloat16,
}


def eager(name: str, s: np.ndarray) -> np.ndarray:
    family, _, short = name.removeprefix("tg_random_").partition("_")
    if family == "bits":
        return ops.random_bits(s, shape=(N,))
    if family in ("randint", "wide"):
        wide = 9 * 10**18
        low, high = (-7, 93) if family == "randint" else (-wide, wide + 1)
        return ops.random_randint(s, low=low, high=high, shape=(N,), dtype=dtypes.int64)
    if family == "bernoulli":
        return ops.random_bernoulli(P.astype(DTYPE[short].numpy), s)
    return {"uniform": ops.random_uniform, "normal": ops.random_normal}[family](
        s, shape=(N,), dtype=DTYPE[short]
    )


@pytest.mark.parametrize("name", _CALLS)
def test_c_helpers_agree_bit_for_bit(name: str, compiled: Compiled) -> None:
    short = name.rpartition("_")[2]
    p = P.astype(DTYPE[short].numpy).astype(np.float64) if short in DTYPE else P
    for seed, counter in STATES[1:4]:
        expected = eager(name, state(seed, counter))
        found = compiled(name, seed, counter, 0, N, p)
        assert found.tobytes() == expected.astype(found.dtype).tobytes()


def test_c_helpers_agree_at_elements_beyond_32_bits(compiled: Compiled) -> None:
    first, n, seed, counter = 2**35, 4096, 11, 2**40 + 3
    words = philox.philox4x32(seed, counter, first // 4, n // 4).reshape(-1)
    assert compiled("tg_random_bits", seed, counter, first, n, P).tobytes() == words.tobytes()
    low, high = philox.philox4x32(seed, counter, first // 2, n // 2).reshape(-1, 2).T
    uniform = ((high.astype(np.uint64) << np.uint64(32) | low) >> np.uint64(11)) * 2.0**-53
    found = compiled("tg_random_uniform_f64", seed, counter, first, n, P)
    assert found.tobytes() == uniform.tobytes()


def test_bernoulli_outside_zero_one_is_nan_in_both(compiled: Compiled) -> None:
    p = np.array([-0.1, 1.0000001, np.nan, np.inf, 0.0, 1.0, -0.0])
    expected = [np.nan] * 4 + [0.0, 1.0, 0.0]
    np.testing.assert_array_equal(ops.random_bernoulli(p, state(1, 1)), expected)
    np.testing.assert_array_equal(compiled("tg_random_bernoulli_f64", 1, 1, 0, 7, p), expected)


# ---- distributions: fixed states, so these pass always or never ---------------------------------

MANY = 200_000


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64])
def test_uniform_and_normal_pass_kolmogorov_smirnov(dtype: dtypes.DType) -> None:
    s = state(2024, 7)
    uniform = ops.random_uniform(s, shape=(MANY,), dtype=dtype).astype(np.float64)
    normal = ops.random_normal(s, shape=(MANY,), dtype=dtype).astype(np.float64)
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01
    # Standard errors: 1/sqrt(n) of the mean, sqrt(2/n) of the variance; four of them allowed.
    assert abs(normal.mean()) < 4 / MANY**0.5
    assert abs(normal.var() - 1) < 4 * (2 / MANY) ** 0.5
    assert abs(stats.kurtosis(normal)) < 4 * (24 / MANY) ** 0.5


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64])
def test_the_two_numbers_of_a_box_muller_pair_are_uncorrelated(dtype: dtypes.DType) -> None:
    x = ops.random_normal(state(5, 6), shape=(MANY // 2, 2), dtype=dtype).astype(np.float64)
    bound = 4 / (MANY // 2) ** 0.5
    assert abs(np.corrcoef(x.T)[0, 1]) < bound
    assert abs(np.corrcoef(x.T**2)[0, 1]) < bound


@pytest.mark.parametrize("dtype", dtypes.FLOATS)
def test_uniform_stays_below_one_and_fills_its_grid(dtype: dtypes.DType) -> None:
    x = ops.random_uniform(state(9, 9), shape=(MANY,), dtype=dtype).astype(np.float64)
    digits = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[dtype.name]
    assert 0 <= x.min() and x.max() <= 1 - 2.0**-digits
    scaled = x * 2.0**digits
    assert np.array_equal(scaled, np.floor(scaled))
    assert set(np.unique(scaled[:5000] % 2)) == {0.0, 1.0}  # the last digit is used


def test_randint_is_even_over_its_range() -> None:
    x = ops.random_randint(state(1, 5), low=-3, high=97, shape=(MANY,), dtype=dtypes.int16)
    counts = np.bincount(x.astype(np.int64) + 3, minlength=100)
    assert x.dtype == np.int16 and len(counts) == 100
    assert stats.chisquare(counts).pvalue > 0.01


def test_randint_reaches_both_ends_of_int64() -> None:
    low, high = -(2**63), 2**63 - 1
    x = ops.random_randint(state(1, 5), low=low, high=high, shape=(1000,), dtype=dtypes.int64)
    word = philox.words64(1, 5, 1000)
    expected = [low + (int(w) * (high - low) >> 64) for w in word]  # exact Python integers
    assert x.tolist() == expected


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 1.0])
def test_bernoulli_hits_with_its_probability(p: float) -> None:
    hits = ops.random_bernoulli(np.full(MANY, p, np.float32), state(8, 1))
    assert hits.dtype == np.float32 and set(np.unique(hits)) <= {0.0, 1.0}
    assert abs(hits.mean(dtype=np.float64) - p) <= 4 * (p * (1 - p) / MANY) ** 0.5


# ---- the transforms -----------------------------------------------------------------------------


def test_log_of_the_transform_is_within_two_ulp() -> None:
    u = np.concatenate([np.random.default_rng(1).random(100_000), 2.0 ** -np.arange(54.0),
                        1 - 2.0 ** -np.arange(1, 54.0)])  # fmt: skip
    exact = np.log(u.astype(np.longdouble))
    ulp = np.spacing(np.maximum(np.abs(exact), 2.0**-1000).astype(np.float64))
    assert float((np.abs(philox.exact_log(u) - exact) / ulp).max()) <= 2


def test_cos_and_sin_of_the_transform() -> None:
    t = np.concatenate([np.random.default_rng(2).random(100_000), np.arange(0, 1, 1 / 64)])
    cosine, sine = philox.exact_cos_sin(t)
    angle = t.astype(np.longdouble) * 8 * np.arctan(np.longdouble(1))
    # |angle| <= pi/4 after reduction: half an ulp of 2 pi, and of each factor, below 2.5 eps / 2.
    assert float(np.abs(cosine - np.cos(angle)).max()) < 2.8e-16
    assert float(np.abs(sine - np.sin(angle)).max()) < 2.8e-16
    assert (cosine[-64::16].tolist(), sine[-64::16].tolist()) == ([1, 0, -1, 0], [0, 1, 0, -1])
