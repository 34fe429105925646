"""Eager forward mode and eager `vmap`, from the table, beside the passes and the loop.

`autograd.forward_ad` and the pass `jvp` read the same rules through drivers of their own; so do
`func.vmap` and the pass `batch`. Start reading at `test_tangent_is_that_of_the_jvp_pass`.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from harness import arrays, cases, generator, graph_of, is_floating, samples, widest

import tracegrad as tg
import tracegrad.autograd.forward_ad as fwad
from tracegrad.func import vmap
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.ops import TABLE
from tracegrad.ir.passes.jvp import jvp
from tracegrad.ir.primitive import NOT_DIFFERENTIABLE, Primitive

SIZE = 3
SMALL = ("plain", "scalar", "empty", "broadcast")
FORWARD = cases(
    (dtypes.float64,),
    only=SMALL,
    where=lambda op: bool(op.args) and op.jvp is not NOT_DIFFERENTIABLE,
)
BATCHED = [
    case
    for op in TABLE.values()
    if callable(op.batch) and op.args
    for case in cases((widest(op),), only=SMALL, where=lambda other, op=op: other is op)
]


def close(got: tg.Tensor, want: np.ndarray) -> None:
    """Equal but for the order of sums: 64 terms at most, each rounded in float64."""
    assert (tuple(got.shape), got.dtype.numpy) == (want.shape, want.dtype)
    scale = float(np.max(np.abs(want), initial=0.0, where=np.isfinite(want)))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-13, atol=1e-14 * scale)


@pytest.mark.parametrize(("op", "dtype", "kind"), FORWARD)
def test_tangent_is_that_of_the_jvp_pass(op: Primitive, dtype: DType, kind: str) -> None:
    rng = generator(op, dtype, stream=5)
    for sample in samples(op, dtype):
        given = arrays(sample)
        wrt = [i for i, a in enumerate(given) if is_floating(a) and op.takes_gradient(i)]
        graph = graph_of(op, sample)
        if sample.kind != kind or not wrt or not graph.outputs[0].dtype.is_floating_point:
            continue
        along = {i: np.asarray(rng.standard_normal(given[i].shape)) for i in wrt}
        with fwad.dual_level():
            tensors = [tg.from_numpy(np.array(a)) for a in given]
            for i, direction in along.items():
                tensors[i] = fwad.make_dual(tensors[i], tg.from_numpy(direction))
            value, tangent = fwad.unpack_dual(op(*tensors, **sample.params))
        out, want = evaluate(jvp(graph, wrt), [*given, *along.values()])
        np.testing.assert_array_equal(value.numpy(), out)
        if tangent is None:  # the rules state that nothing depends on it, so the pass made zeros
            assert not np.any(want)
        else:
            close(tangent, want)


@pytest.mark.parametrize(("op", "dtype", "kind"), BATCHED)
def test_vmap_is_the_loop(op: Primitive, dtype: DType, kind: str) -> None:
    """Each operand batched or shared, in every combination but none, along its last dimension."""
    streams = [samples(op, dtype, stream) for stream in range(SIZE)]
    for examples in zip(*streams, strict=True):
        if examples[0].kind != kind:
            continue
        values = [arrays(e) for e in examples]
        params = examples[0].params
        for flags in product((True, False), repeat=len(values[0])):
            if not any(flags):
                continue
            operands = [
                np.stack([v[i] for v in values], -1) if flag else values[0][i]
                for i, flag in enumerate(flags)
            ]
            got = vmap(
                lambda *x, params=params: op(*x, **params),
                in_dims=tuple(-1 if flag else None for flag in flags),
            )(*(tg.from_numpy(np.array(a)) for a in operands))
            loop = [
                op(*(v[i] if flag else values[0][i] for i, flag in enumerate(flags)), **params)
                for v in values
            ]
            want = np.stack([np.asarray(x) for x in loop])
            if is_floating(want):
                close(got, want)
            else:
                np.testing.assert_array_equal(got.numpy(), want)
