"""The C of convolution and pooling, compiled alone and compared with the eager kernels.

Each case renders one kernel, compiles it with gcc beside the helpers it calls, and runs it through
ctypes: once on one thread and once on two, which must give the same bits.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracegrad.codegen.plan import Target
from tracegrad.codegen.plan_convolution import plan_convolution
from tracegrad.codegen.plan_window import plan_window
from tracegrad.codegen.prelude import prelude
from tracegrad.ir import dtypes, ops
from tracegrad.ir.primitive import type_of

COMPILER = os.environ.get("CC", "gcc")
FLAGS = ["-O2", "-fopenmp", "-fPIC", "-shared", "-Wall", "-Wno-unused", "-Werror",
         "-fno-math-errno", "-ffp-contract=off"]  # fmt: skip
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C compiler")
TRIAL = """
{prelude}

{kernels}
"""


def compiled(folder: Path, kernels: list[str]) -> ctypes.CDLL:
    """A shared object with the kernels, made visible by dropping `static`."""
    body = "\n".join(k.replace("static void", "void", 1) for k in kernels)
    source = folder / "kernels.c"
    source.write_text(TRIAL.format(prelude=prelude(body, Target()), kernels=body))
    library = folder / "kernels.so"
    done = subprocess.run(
        [COMPILER, *FLAGS, str(source), "-o", str(library), "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def launch(
    library: ctypes.CDLL, plan: Any, operands: list[np.ndarray], out: np.ndarray
) -> np.ndarray:
    """Run a kernel on fresh garbage: neither the result nor the scratch starts at zero."""
    out = np.frombuffer(bytes([0x5A]) * out.nbytes, out.dtype).reshape(out.shape).copy()
    scratch = np.full(plan.scratch_bytes + 64, 0x5A, np.uint8)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*operands, out, scratch)]
    getattr(library, plan.name)(*pointers)
    assert (scratch[plan.scratch_bytes :] == 0x5A).all(), "the kernel wrote past its scratch"
    return out


def on_threads(library: ctypes.CDLL, count: int) -> ctypes.c_int:
    """Set how many threads the kernels use while the result, the cell that they read, is alive."""
    cell = ctypes.c_int(count)
    library.tg_init_threads(ctypes.byref(cell))
    return cell


def check(
    tmp_path: Path, cases: list[tuple[Any, list[np.ndarray], np.ndarray]], compare: Any
) -> None:
    """Compile all cases at once; each must agree with the eager result on one and two threads."""
    library = compiled(tmp_path, [plan.render() for plan, _, _ in cases])
    for plan, operands, expected in cases:
        cell = on_threads(library, 1)
        one = launch(library, plan, operands, expected)
        cell.value = 2
        two = launch(library, plan, operands, expected)
        compare(one, expected, str(plan.summary))
        assert one.tobytes() == two.tobytes(), plan.summary


# ---- convolution --------------------------------------------------------------------------------

GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 4, 12, 13), (8, 4, 3, 3), {}),
    "padded": ((3, 4, 8, 8), (8, 4, 3, 3), {"padding": 1}),
    "side_by_side": ((7, 8, 4, 4), (16, 8, 3, 3), {"padding": 1}),
    "side_by_side_groups": ((5, 8, 4, 5), (16, 4, 3, 2), {"padding": 1, "groups": 2}),
    "uneven": ((2, 6, 11, 9), (9, 2, 3, 2),
               {"stride": (2, 1), "padding": ((2, 0), (1, 3)), "dilation": (1, 2), "groups": 3}),
    "one_by_one": ((4, 16, 10, 10), (8, 16, 1, 1), {}),
    "depthwise": ((2, 6, 9, 9), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "line": ((3, 8, 50), (8, 8, 5), {"stride": 2, "padding": 2}),
    "short_line": ((9, 8, 10), (8, 8, 3), {"padding": 1}),
    "volume": ((2, 3, 6, 7, 8), (8, 3, 3, 2, 3), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    "rows": ((2, 32, 40, 40), (8, 32, 3, 3), {"padding": 1}),
    "rows_of_groups": ((1, 64, 41, 40), (16, 32, 3, 3), {"padding": 1, "groups": 2}),
    "many_images": ((50, 16, 8, 8), (32, 16, 3, 3), {"padding": 1}),
    "tiny": ((2, 2, 5, 5), (3, 2, 3, 3), {"padding": 1}),
    "tiny_line": ((2, 2, 7), (3, 2, 3), {"padding": 1, "dilation": 2}),
    "tiny_volume": ((1, 2, 4, 4, 4), (2, 1, 2, 2, 2), {"groups": 2, "padding": 1}),
    "no_images": ((0, 4, 8, 8), (8, 4, 3, 3), {}),
}  # fmt: skip
DTYPES = (
    dtypes.float64,
    dtypes.float32,
    dtypes.float16,
    dtypes.bfloat16,
    dtypes.int32,
    dtypes.int8,
)


def values(rng: np.random.Generator, dtype: dtypes.DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype.numpy)
    return rng.integers(-100, 100, size=shape).astype(dtype.numpy)


def three_operations(
    rng: np.random.Generator,
    dtype: dtypes.DType,
    xs: tuple[int, ...],
    ws: tuple[int, ...],
    given: Any,
) -> list[tuple[str, list[np.ndarray], dict[str, Any]]]:
    x, w = values(rng, dtype, xs), values(rng, dtype, ws)
    params = dict(ops.conv.normalize([type_of(x), type_of(w)], given))
    ct = values(rng, dtype, ops.conv(x, w, **params).shape)
    return [
        ("conv", [x, w], params),
        ("conv_input_grad", [ct, w], {**params, "input_size": xs[2:]}),
        ("conv_weight_grad", [x, ct], {**params, "kernel_size": ws[2:]}),
    ]


def compare_sums(dtype: dtypes.DType) -> Any:
    """Integers agree exactly; floats up to the order of a sum of n terms of size about one."""
    eps = {"float64": 2.2e-16, "float32": 1.2e-7, "float16": 1e-3, "bfloat16": 8e-3}

    def compare(got: np.ndarray, expected: np.ndarray, summary: str) -> None:
        if dtype.kind != "f":
            np.testing.assert_array_equal(got, expected, err_msg=summary)
            return
        wide, want = got.astype(np.float64), expected.astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(want), initial=0.0)))
        # Two summation orders of n normal terms differ by about sqrt(n) eps of the largest sum.
        np.testing.assert_allclose(
            wide, want, rtol=0, atol=20 * eps[dtype.name] * scale, err_msg=summary
        )

    return compare


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_convolution_kernels_agree_with_eager_on_any_number_of_threads(tmp_path, dtype):
    rng = np.random.default_rng(0)
    cases = []
    for label, (xs, ws, given) in GEOMETRIES.items():
        if dtype not in (dtypes.float32, dtypes.float64) and "rows" in label:
            continue  # direct loops have no tiles of rows
        for op_name, operands, params in three_operations(rng, dtype, xs, ws, given):
            expected = getattr(ops, op_name)(*operands, **params)
            plan = plan_convolution(
                op_name, [type_of(a) for a in operands], type_of(expected), params,
                name=f"{op_name}_{label}", comment="model.py:41",
            )  # fmt: skip
            cases.append((plan, operands, expected))
    check(tmp_path, cases, compare_sums(dtype))


def plan_for(
    op_name: str, xs: tuple[int, ...], ws: tuple[int, ...], given: Any, dtype: Any = dtypes.float32
) -> Any:
    rng = np.random.default_rng(0)
    for name, operands, params in three_operations(rng, dtype, xs, ws, given):
        if name == op_name:
            expected = getattr(ops, name)(*operands, **params)
            return plan_convolution(name, [type_of(a) for a in operands], type_of(expected), params)
    raise AssertionError(op_name)


def test_the_geometries_exercise_every_form():
    seen = set()
    for op_name, (xs, ws, given) in product(
        ("conv", "conv_input_grad", "conv_weight_grad"), GEOMETRIES.values()
    ):
        plan = plan_for(op_name, xs, ws, given)
        seen.add(
            (plan.template, plan.tile.packed, plan.tile.tiled, plan.blocked, plan.work.parallel)
        )
    forms = {form[:4] for form in seen}
    assert ("convolution.c.j2", True, False, False) in forms
    assert ("convolution.c.j2", False, True, False) in forms
    assert ("convolution_input_grad.c.j2", True, False, False) in forms
    assert ("convolution_input_grad.c.j2", False, False, True) in forms
    assert ("convolution_weight_grad.c.j2", True, False, False) in forms
    assert ("convolution_weight_grad.c.j2", False, True, False) in forms
    assert {form[0] for form in seen if form[4]} >= {
        "convolution.c.j2", "convolution_input_grad.c.j2", "convolution_weight_grad.c.j2",
    }  # fmt: skip
    assert len({form[0] for form in seen}) == 6


def test_direct_loops_are_chosen_for_tiny_and_depthwise_convolutions():
    assert plan_for("conv", *GEOMETRIES["tiny"]).template == "convolution_direct.c.j2"
    assert plan_for("conv", *GEOMETRIES["depthwise"]).template == "convolution_direct.c.j2"
    assert plan_for("conv", *GEOMETRIES["many_images"]).template == "convolution.c.j2"


def test_small_convolutions_stay_on_one_thread():
    plan = plan_for("conv", *GEOMETRIES["padded"])
    assert not plan.work.parallel
    assert "#pragma omp parallel" not in plan.render()
    assert "#pragma omp parallel for" in plan_for("conv", *GEOMETRIES["many_images"]).render()


# ---- windows ------------------------------------------------------------------------------------

WINDOWS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "halves": ((3, 4, 8, 10), {"window": 2}),
    "padded": ((2, 3, 9, 8), {"window": 3, "stride": 2, "padding": 1}),
    "dilated": (
        (2, 2, 9, 11),
        {"window": (2, 3), "stride": 1, "padding": (1, 2), "dilation": (2, 2)},
    ),
    "line": ((2, 3, 20), {"window": 4, "stride": 3, "padding": 2}),
    "volume": ((1, 2, 5, 6, 4), {"window": (2, 3, 2), "stride": (2, 1, 2), "padding": (0, 1, 1)}),
    "parallel": ((16, 8, 32, 32), {"window": 3, "stride": 2, "padding": 1}),
    "no_images": ((0, 4, 8, 8), {"window": 2}),
}


def window_operations(
    rng: np.random.Generator, dtype: dtypes.DType, xs: tuple[int, ...], given: Any
) -> list[tuple[str, list[np.ndarray], dict[str, Any]]]:
    x = values(rng, dtype, xs)
    if dtype.kind == "f" and x.size:
        x[..., 1] = x[..., 0]  # ties
        x[0, 0, ..., 3] = np.nan
        x[0, 1, ..., :2] = -np.inf
    params = dict(ops.window_max.normalize([type_of(x)], given))
    index = ops.window_argmax(x, **params)
    ct = values(rng, dtype, index.shape)
    return [
        ("window_max", [x], params), ("window_argmax", [x], params), ("window_sum", [x], params),
        ("window_spread", [ct], {**params, "input_size": xs[2:]}),
        ("window_gather", [x, index], {}),
        ("window_scatter_add", [ct, index], {"input_size": xs[2:]}),
    ]  # fmt: skip


def same_bits(got: np.ndarray, want: np.ndarray, summary: str) -> None:
    """Equal values and signs of zero, and NaN in the same places."""
    if want.dtype.kind not in "iu":
        got, want = (
            got.astype(np.float64),
            want.astype(np.float64),
        )  # exact, and numpy knows its NaN
        finite = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(want[finite]), summary)
    np.testing.assert_array_equal(got, want, summary)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_window_kernels_equal_eager_to_the_bit(tmp_path, dtype):
    rng = np.random.default_rng(0)
    cases = []
    for label, (xs, given) in WINDOWS.items():
        for op_name, operands, params in window_operations(rng, dtype, xs, given):
            expected = getattr(ops, op_name)(*operands, **params)
            plan = plan_window(
                op_name, [type_of(a) for a in operands], type_of(expected), params,
                name=f"{op_name}_{label}", comment="model.py:41",
            )  # fmt: skip
            cases.append((plan, operands, expected))
    assert any(plan.work.parallel for plan, _, _ in cases)
    check(tmp_path, cases, same_bits)


def test_a_python_line_cannot_end_the_comment_above_a_kernel():
    x = np.zeros((1, 1, 4, 4), np.float32)
    params = dict(ops.window_max.normalize([type_of(x)], {"window": 2}))
    out = ops.window_max(x, **params)
    plan = plan_window("window_max", [type_of(x)], type_of(out), params, comment='f("*/")')
    assert plan.summary[-1] == 'f("* /")'
