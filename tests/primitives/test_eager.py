"""Eager kernels, from the table: against references, and held to what the records promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import arrays, cases, graph_of, is_floating, of_kind
from references import SCALAR, by_element

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.ops import TABLE
from tracegrad.ir.primitive import LINEAR, ZERO, Primitive, primitive

# How far a kernel and its reference may be apart, in ulp of the result. NumPy states up to 4 for
# its vector kernels. In float64 these are farther from `math`: near a zero, or in SciPy.
WITHIN_ULP = 4
WITHIN_ULP_FLOAT64 = {"digamma": 40, "polygamma": 40, "lgamma": 80, "erfinv": 40, "erfc": 24}


@pytest.mark.parametrize(("op", "dtype", "kind"), cases(where=lambda op: op.name in SCALAR))
def test_eager_agrees_with_reference(op: Primitive, dtype: DType, kind: str) -> None:
    for sample in of_kind(op, dtype, kind):
        got = op(*sample.operands, **sample.params)
        expected = by_element(op.name, arrays(sample), sample.params, got.dtype).reshape(got.shape)
        if not is_floating(got):
            np.testing.assert_array_equal(got, expected)
            continue
        result, allowed = dtypes.from_numpy(got.dtype), WITHIN_ULP
        if result is dtypes.float64:
            allowed = WITHIN_ULP_FLOAT64.get(op.name, WITHIN_ULP)
        scale = np.maximum(np.abs(expected), _smallest(result)) * _resolution(result)
        worst = np.max(np.abs(got.astype(np.float64) - expected) / scale, initial=0.0)
        assert worst <= allowed


def _resolution(dtype: DType) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy).eps)


def _smallest(dtype: DType) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy).tiny)


@pytest.mark.parametrize(("op", "dtype", "kind"), cases())
def test_predicted_type_is_actual_type(op: Primitive, dtype: DType, kind: str) -> None:
    for sample in of_kind(op, dtype, kind):
        graph = graph_of(op, sample)
        (got,) = evaluate(graph, arrays(sample))
        predicted = graph.outputs[0].type
        assert (got.shape, got.dtype) == (predicted.shape, predicted.dtype.numpy)


@pytest.mark.parametrize(("op", "dtype", "kind"), cases())
def test_operands_are_not_written(op: Primitive, dtype: DType, kind: str) -> None:
    for sample in of_kind(op, dtype, kind):
        operands = arrays(sample)
        before = [x.tobytes() for x in operands]
        op(*operands, **sample.params)
        assert [x.tobytes() for x in operands] == before


NARROW = (dtypes.float16, dtypes.bfloat16)


@pytest.mark.parametrize(("op", "dtype", "kind"), cases(NARROW))
def test_narrow_floats_agree_with_float32(op: Primitive, dtype: DType, kind: str) -> None:
    """float16 and bfloat16 give the rounded result of float32, up to one more rounding."""
    for sample in of_kind(op, dtype, kind):
        wide = [x.astype(np.float32) if x.dtype == dtype.numpy else x for x in arrays(sample)]
        got = np.asarray(op(*sample.operands, **sample.params))
        expected = np.asarray(op(*wide, **sample.params))
        if not is_floating(got) or not any(x.dtype == np.float32 for x in wide):
            np.testing.assert_array_equal(got, expected.astype(got.dtype))
            continue
        a, b = got.astype(np.float64), expected.astype(np.float64)
        scale = np.abs(b) if op.family == "pointwise" else np.max(np.abs(b), initial=0.0)
        assert np.all(np.abs(a - b) <= 2 * _resolution(dtype) * scale + _smallest(dtype))


REFUSALS = [
    pytest.param(op, refusal, id=f"{op.name}-{i}")
    for op in TABLE.values()
    for i, refusal in enumerate(op.refusals)
]


@pytest.mark.parametrize(("op", "refusal"), REFUSALS)
def test_refusal_has_its_class_and_text(op: Primitive, refusal: Any) -> None:
    with pytest.raises(refusal.error, match=refusal.match):
        op(*refusal.operands, **refusal.params)


@pytest.mark.parametrize("op", TABLE.values(), ids=lambda op: op.name)
def test_record_is_complete(op: Primitive) -> None:
    """Derivatives are stated, sources named, samples there for every dtype accepted by all."""
    for rules in (op.vjp, op.jvp):
        stated = rules if isinstance(rules, tuple) else (rules,)
        assert all(
            r is None or callable(r) or r in (ZERO, LINEAR) or "NOT" in repr(r) for r in stated
        )
    assert op.source
    assert callable(op.batch) or len(op.batch) > 20
    assert any(True for d in dtypes.ALL if d in op.dtypes)


def _record(**changes: Any) -> dict[str, Any]:
    sin = TABLE["sin"]
    names = (
        "args",
        "family",
        "shape",
        "dtype",
        "eager",
        "vjp",
        "jvp",
        "batch",
        "samples",
        "source",
    )
    return {**{n: getattr(sin, n) for n in names}, **changes}


def test_record_without_derivative_is_refused() -> None:
    record = _record()
    del record["vjp"]
    with pytest.raises(TypeError, match="vjp"):
        primitive("without_derivative", **record)


def test_record_with_too_few_rules_is_refused() -> None:
    with pytest.raises(TypeError, match="jvp must state one rule per argument"):
        primitive("with_too_few_rules", **_record(jvp=()))
    assert "with_too_few_rules" not in TABLE


def test_name_is_taken_once() -> None:
    with pytest.raises(TypeError, match="sin is declared twice"):
        primitive("sin", **_record())
