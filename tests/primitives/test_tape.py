"""The eager tape beside reverse mode on graphs: every differentiable primitive, every sample.

Both read the same rules, through drivers of their own: the engine of `backward()`, which sees
arrays only where it kept them, and the pass `autodiff.vjp`. Start reading at
`test_tape_agrees_with_the_vjp_pass`.
"""

from __future__ import annotations

import numpy as np
import pytest
from harness import arrays, cases, generator, graph_of, is_floating, samples

import tracegrad as tg
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.passes.autodiff import vjp
from tracegrad.ir.primitive import NOT_DIFFERENTIABLE, Primitive

ULPS = 8  # sums of cotangents may be taken in another order
CASES = cases(
    (dtypes.float64, dtypes.float16, dtypes.bfloat16),
    only=("plain", "scalar", "empty", "broadcast", "strided"),
    where=lambda op: bool(op.args) and op.vjp is not NOT_DIFFERENTIABLE,
)


@pytest.mark.parametrize(("op", "dtype", "kind"), CASES)
def test_tape_agrees_with_the_vjp_pass(op: Primitive, dtype: DType, kind: str) -> None:
    rng = generator(op, dtype, stream=4)
    for sample in samples(op, dtype):
        if sample.kind != kind:
            continue
        given = arrays(sample)
        graph = graph_of(op, sample)
        leaves = [tg.from_numpy(_writable(a)).requires_grad_(is_floating(a)) for a in given]
        out = op(*leaves, **sample.params)
        wrt = [i for i, a in enumerate(given) if is_floating(a) and op.has_history(i)]
        if not wrt or not out.dtype.is_floating_point:
            assert not out.requires_grad
            continue
        ct = np.asarray(rng.standard_normal(tuple(out.shape))).astype(out.dtype.numpy)
        (out * tg.from_numpy(ct)).sum().backward()
        wanted = evaluate(vjp(graph, wrt), [*given, ct])
        for i, want in zip(wrt, wanted, strict=True):
            check(leaves[i].grad, want)


def _writable(a: np.ndarray) -> np.ndarray:
    """Memory of its own with the strides of `a` where these are positive."""
    whole = np.zeros([1 + 2 * n for n in a.shape], a.dtype)
    view = whole[tuple(slice(1, None, 2) for _ in a.shape)]
    target = view if not a.flags.c_contiguous else np.empty(a.shape, a.dtype)
    target[...] = a
    return target


def check(got: tg.Tensor | None, want: np.ndarray) -> None:
    if got is None:  # the rules state that nothing depends on it, so the pass made zeros
        assert not np.any(want)
        return
    assert (tuple(got.shape), got.dtype.numpy) == (want.shape, want.dtype)
    a, b = got._array.astype(np.float64), want.astype(np.float64)
    eps = {"float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}[got.dtype.name]
    scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
    np.testing.assert_allclose(a, b, rtol=0, atol=ULPS * eps * scale)
