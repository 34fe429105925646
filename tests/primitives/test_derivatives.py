"""Derivatives of every primitive in float64, from the table, first and second order.

Reverse mode is held against a central difference, forward mode against reverse mode by
<ct, J t> = <J^T ct, t>, and both again on the graph of the derivative.
"""

from __future__ import annotations

import numpy as np
import pytest
from harness import (
    SMALL,
    arrays,
    cases,
    directions,
    dot,
    floating,
    generator,
    graph_of,
    magnitude,
    of_kind,
    slope,
)

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph
from tracegrad.ir.passes.autodiff import vjp
from tracegrad.ir.passes.jvp import jvp
from tracegrad.ir.primitive import NOT_DIFFERENTIABLE, Primitive
from tracegrad.ir.verify import verify

# Its purpose is to have another derivative than the one a difference quotient shows.
BY_DEFINITION = {"detach"}
RELATIVE = 1e-7  # of the sum of magnitudes; the difference quotient itself is good to about 1e-9


def differentiable(op: Primitive) -> bool:
    return op.vjp is not NOT_DIFFERENTIABLE


CASES = cases((dtypes.float64,), only=SMALL, where=differentiable)


def problems(op: Primitive, dtype: DType, kind: str):  # type: ignore[no-untyped-def]
    """Graphs with floating operands and results, their inputs and the operands that vary."""
    for sample in of_kind(op, dtype, kind):
        graph, wrt = graph_of(op, sample), floating(sample)
        if wrt and graph.outputs[0].dtype is dtypes.float64:
            varied = tuple(i for i in wrt if graph.inputs[i].dtype is dtypes.float64)
            yield graph, list(arrays(sample)), varied


def outputs_like(rng: np.random.Generator, graph: Graph) -> list[np.ndarray]:
    return [np.asarray(rng.standard_normal(v.shape)) for v in graph.outputs]


@pytest.mark.parametrize(("op", "dtype", "kind"), CASES)
def test_vjp_agrees_with_central_difference(op: Primitive, dtype: DType, kind: str) -> None:
    rng = generator(op, dtype, stream=1)
    for graph, inputs, wrt in problems(op, dtype, kind):
        ct = outputs_like(rng, graph)
        backward = verify(vjp(graph, wrt))
        grads = evaluate(backward, [*inputs, *ct])
        assert [g.shape for g in grads] == [inputs[i].shape for i in wrt]
        if op.name in BY_DEFINITION:
            assert not any(np.any(g) for g in grads)
            continue
        along = directions(rng, [inputs[i] for i in wrt])
        expected = slope(graph, inputs, wrt, along, ct)
        scale = magnitude(grads, along) + magnitude(ct, evaluate(graph, inputs))
        assert abs(dot(grads, along) - expected) <= RELATIVE * scale


@pytest.mark.parametrize(("op", "dtype", "kind"), CASES)
def test_jvp_is_the_adjoint_of_vjp(op: Primitive, dtype: DType, kind: str) -> None:
    rng = generator(op, dtype, stream=2)
    for graph, inputs, wrt in problems(op, dtype, kind):
        check_adjoint(graph, inputs, wrt, rng)


def check_adjoint(
    graph: Graph, inputs: list[np.ndarray], wrt: tuple[int, ...], rng: np.random.Generator
) -> None:
    """<ct, J t> = <J^T ct, t> for random ct and t, up to rounding."""
    ct = outputs_like(rng, graph)
    along = directions(rng, [inputs[i] for i in wrt])
    forward = evaluate(verify(jvp(graph, wrt)), [*inputs, *along])
    primal, tangents = forward[: len(ct)], forward[len(ct) :]
    for a, b in zip(primal, evaluate(graph, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    grads = evaluate(verify(vjp(graph, wrt)), [*inputs, *ct])
    scale = magnitude(ct, tangents) + magnitude(grads, along)
    # Products of up to a few hundred rounded terms on either side.
    assert abs(dot(ct, tangents) - dot(grads, along)) <= 1e-12 * scale


@pytest.mark.parametrize(("op", "dtype", "kind"), CASES)
def test_second_derivative(op: Primitive, dtype: DType, kind: str) -> None:
    """The same two tests on the backward graph, in the operands and in the cotangent."""
    rng = generator(op, dtype, stream=3)
    for graph, inputs, wrt in problems(op, dtype, kind):
        backward = vjp(graph, wrt)
        first = [*inputs, *outputs_like(rng, graph)]
        both = (*wrt, len(inputs))
        check_adjoint(backward, first, both, rng)
        if op.name in BY_DEFINITION:
            continue
        weights = outputs_like(rng, backward)
        along = directions(rng, [first[i] for i in both])
        grads = evaluate(verify(vjp(backward, both)), [*first, *weights])
        expected = slope(backward, first, both, along, weights)
        scale = magnitude(grads, along) + magnitude(weights, evaluate(backward, first))
        assert abs(dot(grads, along) - expected) <= RELATIVE * scale
