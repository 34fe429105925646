"""Every C expression of the pointwise table, compiled as a bare loop, against its eager kernel.

One translation unit holds a loop per primitive and dtype, so that what is tested is the record's
expression and the helpers in `codegen/templates/prelude_math.c`, not the scheduler.
Start reading at `test_expression_agrees_with_eager_kernel`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracegrad.codegen.expressions import Expr, fill
from tracegrad.codegen.lower import c_template, cast_template
from tracegrad.codegen.plan import Target
from tracegrad.codegen.prelude import prelude
from tracegrad.ir import dtypes
from tracegrad.ir.graph import GraphBuilder, Node
from tracegrad.ir.ops import TABLE
from tracegrad.ir.primitive import Primitive, bind, evaluate_primitive, type_of
from tracegrad.runtime import toolchain

DTYPES = (dtypes.bool_, dtypes.uint8, dtypes.int8, dtypes.int32, dtypes.int64, dtypes.uint32,
          dtypes.float32, dtypes.float64)  # fmt: skip
SEPARATE = {"cast", "detach"}  # the lowering has its own rules for these two
CASES = [
    (op, dtype)
    for op in TABLE.values()
    if op.family == "pointwise" and op.name not in SEPARATE
    for dtype in DTYPES
    if dtype in op.dtypes
]
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 7.0, -7.25, 1e-3, 1e-30, 3e9, 1e20,
           np.inf, -np.inf, np.nan)  # fmt: skip
CASTS = [(s, t) for s in (dtypes.float32, dtypes.float64) for t in DTYPES]
# Their `ulp` holds on the samples' range; elsewhere (near zeros) the relative error is larger.
RANGE_OF_ULP = {"tan", "lgamma", "digamma", "polygamma", "erfc"}


def node_of(op: Primitive, operands: tuple[np.ndarray, ...], params: Any) -> Node:
    """The graph node of `op` on operands of these types."""
    builder = GraphBuilder()
    inputs = tuple(builder.input(type_of(a)) for a in operands)
    with builder:
        bind(op, inputs, params)
    return builder.nodes[0]


def first_sample(op: Primitive, dtype: dtypes.DType) -> Any:
    return next(s for s in op.samples(np.random.default_rng(0), dtype) if s.kind == "large")


def function_name(op: Primitive, dtype: dtypes.DType) -> str:
    return f"loop_{op.name}_{dtype.name}"


def loop_text(op: Primitive, dtype: dtypes.DType) -> str:
    """A C function that applies the expression to every element."""
    sample = first_sample(op, dtype)
    node = node_of(op, sample.operands, sample.params)
    slots = {name: Expr(f"p_{name}[i]") for name in op.args}
    arguments = "".join(
        f", const {v.dtype.c_type} *restrict p_{name}"
        for name, v in zip(op.args, node.inputs, strict=True)
    )
    return (
        f"void {function_name(op, dtype)}(int64_t n, int64_t *status{arguments}, "
        f"{node.out.dtype.c_type} *restrict out)\n{{\n"
        f"    for (int64_t i = 0; i < n; i++)\n"
        f"        out[i] = {fill(c_template(node), slots).text};\n}}\n"
    )


def cast_text(source: dtypes.DType, target: dtypes.DType) -> str:
    """A C function that converts every element."""
    expression = fill(cast_template(source, target), {"x": Expr("p_x[i]")}).text
    return (
        f"void cast_{source.name}_{target.name}(int64_t n, const {source.c_type} *restrict p_x, "
        f"{target.c_type} *restrict out)\n{{\n"
        f"    for (int64_t i = 0; i < n; i++)\n        out[i] = {expression};\n}}\n"
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    tool = toolchain.find()
    if isinstance(tool, str) or tool is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("expressions")
    texts = [loop_text(op, dtype) for op, dtype in CASES] + [cast_text(*c) for c in CASTS]
    kernels = "\n".join(texts)
    target = Target(vector_math=(2, 36))
    return build(tool, folder, prelude(kernels, target) + "\n" + kernels)


def build(tool: Any, folder: Path, source: str) -> ctypes.CDLL:
    import subprocess

    path = folder / "unit.c"
    path.write_text(source)
    target = folder / "unit.so"
    command = [*tool.command, *tool.flags, "-Wall", "-Werror", str(path), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(target))


def run(
    library: ctypes.CDLL, op: Primitive, dtype: dtypes.DType, operands: Any, params: Any
) -> Any:
    """The result of the compiled loop and the status it left."""
    operands = [np.ascontiguousarray(a) for a in np.broadcast_arrays(*operands)]
    result = op.infer([type_of(a) for a in operands], params)
    out = np.empty(result.shape, result.dtype.numpy)
    status = np.zeros(4, np.int64)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (status, *operands, out)]
    getattr(library, function_name(op, dtype))(ctypes.c_int64(out.size), *pointers)
    return out, int(status[0])


def ulp_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance in units in the last place; infinite where only one of two is NaN."""
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else np.inf
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    a, b = a[~same], b[~same]
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return np.inf
    unit = np.spacing(np.maximum(np.abs(a), np.abs(b)).astype(a.dtype)).astype(np.float64)
    return float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)) / unit))


@pytest.mark.parametrize(("op", "dtype"), CASES, ids=lambda c: c.name)
def test_expression_agrees_with_eager_kernel(
    library: ctypes.CDLL, op: Primitive, dtype: dtypes.DType
) -> None:
    sample = first_sample(op, dtype)
    got, status = run(library, op, dtype, sample.operands, sample.params)
    expected = evaluate_primitive(op, sample.operands, sample.params)
    assert status == 0
    assert ulp_distance(got, expected) <= op.ulp


@pytest.mark.parametrize(
    ("op", "dtype"), [(o, d) for o, d in CASES if d.kind == "f"], ids=lambda c: c.name
)
def test_expression_agrees_at_special_values(
    library: ctypes.CDLL, op: Primitive, dtype: dtypes.DType
) -> None:
    """NaN, the infinities, zeros and out-of-domain values, in every combination of operands."""
    sample = first_sample(op, dtype)
    values = np.array(SPECIAL, dtype.numpy)
    grid = np.meshgrid(*[
        values if a.dtype == dtype.numpy else np.array([True, False]) for a in sample.operands
    ])  # fmt: skip
    got, _ = run(library, op, dtype, grid, sample.params)
    expected = evaluate_primitive(op, grid, sample.params)
    if op.name in RANGE_OF_ULP:
        np.testing.assert_allclose(got, expected, rtol=2e-6 if dtype.itemsize == 4 else 1e-13)
    else:
        assert ulp_distance(got, expected) <= op.ulp


def integer_grid(dtype: dtypes.DType) -> np.ndarray:
    info = np.iinfo(dtype.numpy)
    near = [0, 1, 2, 3, 5, 7, 8, 31, 33, 64, 100, -1, -2, -7]
    near += [info.max, info.max - 1, info.min, info.min + 1]
    return np.array(sorted({v for v in near if info.min <= v <= info.max}), dtype.numpy)


@pytest.mark.parametrize(
    ("op", "dtype"), [(o, d) for o, d in CASES if d.kind in "iu"], ids=lambda c: c.name
)
def test_expression_agrees_on_extreme_integers(
    library: ctypes.CDLL, op: Primitive, dtype: dtypes.DType
) -> None:
    """Overflow wraps around, the least integer divides by -1, shifts run past the width."""
    sample = first_sample(op, dtype)
    values = integer_grid(dtype)
    divides = op.name in ("fmod", "remainder", "floor_divide")
    axes = [values if a.dtype == dtype.numpy else np.array([True, False]) for a in sample.operands]
    if divides:
        axes[1] = values[values != 0]
    grid = np.meshgrid(*axes)
    got, status = run(library, op, dtype, grid, sample.params)
    expected = evaluate_primitive(op, grid, sample.params)
    assert status == 0
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["fmod", "remainder", "floor_divide"])
def test_integer_division_by_zero_sets_status(library: ctypes.CDLL, name: str) -> None:
    operands = (np.array([1, 2], np.int64), np.array([1, 0], np.int64))
    _, status = run(library, TABLE[name], dtypes.int64, operands, {})
    assert status == 2


@pytest.mark.parametrize(("source", "target"), CASTS, ids=lambda d: d.name)
def test_conversion_agrees_out_of_range(
    library: ctypes.CDLL, source: dtypes.DType, target: dtypes.DType
) -> None:
    """NaN, the infinities and what does not fit: Note [Floating to integer]."""
    edges = [2.0**k + d for k in (7, 8, 15, 16, 31, 32, 63) for d in (-1.0, 0.0, 1.0)]
    x = np.array([*SPECIAL, 300.7, -300.7, *edges, *(-e for e in edges)], source.numpy)
    out = np.empty(x.shape, target.numpy)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, out)]
    getattr(library, f"cast_{source.name}_{target.name}")(ctypes.c_int64(x.size), *pointers)
    expected = evaluate_primitive(TABLE["cast"], (x,), {"dtype": target})
    np.testing.assert_array_equal(out, expected)
