"""`compile(debug=True)` on a device: a look behind each launch. On a GPU or the emulated driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.ir.errors import AcceleratorError, BoundsError, NaNError
from tracegrad.runtime import debugging
from tracegrad.runtime.cuda import driver

problem = driver.status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(problem is not None, reason=f"no CUDA: {problem}"),
]
FILE = Path(__file__).name
NAN = float("nan")


def scores(x: Any, w: Any) -> Any:
    y = x * 2
    z = y.log()
    q = (z @ w).exp()
    return tg.where(q > 0, q, tg.zeros_like(q)).sum()


FIRST = scores.__code__.co_firstlineno


def good() -> tuple[Any, Any]:
    tg.manual_seed(0)
    return (tg.rand(40, 30) + 0.1).to("cuda"), tg.randn(30, 50).to("cuda")


def with_element(x: Any, value: float) -> Any:
    made = x.clone()
    made[2, 3] = value
    return made


def test_numbers_are_computed_as_ever() -> None:
    x, w = good()
    f = tg.compile(scores, debug=True)
    given = x.requires_grad_()
    for _ in range(3):
        out = f(given, w)
        assert out.item() == pytest.approx(scores(x, w).item(), rel=1e-4)
        out.backward()
    assert f.cache_info().hits == 2
    want = x.detach().clone().requires_grad_()
    scores(want, w).backward()
    assert tg.allclose(given.grad, want.grad * 3, rtol=1e-3)


def test_a_nan_inside_that_no_result_shows_is_found() -> None:
    x, w = good()
    f = tg.compile(scores, debug=True)
    f(x, w)
    with pytest.raises(NaNError) as caught:
        f(with_element(x, -1.0), w)
    first, second = str(caught.value).splitlines()
    assert first == (
        f"scores: log makes NaN of operands without NaN at {FILE}:{FIRST + 2}: z = y.log()"
    )
    assert second.startswith("element [2, 3] of shape [40, 30] is NaN, 1 of 1200 elements are, ")
    assert "behind launch " in second and f"{FILE}:{FIRST + 2}: z = y.log()" in second
    assert float(f(x, w)) == pytest.approx(float(scores(x, w)), rel=1e-4)


def test_the_call_that_captures_is_looked_at() -> None:
    x, w = good()
    with pytest.raises(NaNError, match=f"log makes NaN .* at {FILE}:{FIRST + 2}"):
        tg.compile(scores, debug=True)(with_element(x, -1.0), w)


def test_nan_that_was_given_is_no_fault() -> None:
    f = tg.compile(lambda x: (x * 2).exp() + 1, debug=True)
    x, _ = good()
    f(x)
    assert tg.isnan(f(with_element(x, NAN))).sum() == 1


def test_views_are_looked_at_as_they_lie() -> None:
    f = tg.compile(lambda x: x.t().log() * 2, debug=True)
    x, _ = good()
    x = tg.cat([x, x])[::2]
    f(x)
    with pytest.raises(NaNError, match=r"element \[3, 2\] of shape \[30, 40\]"):
        x[2, 3] = -1.0
        f(x)


@pytest.mark.parametrize("dtype", [tg.float64, tg.float16, tg.bfloat16])
def test_other_dtypes(dtype: Any) -> None:
    f = tg.compile(lambda x: x.sqrt() + 1, debug=True)
    x = tg.ones(10, dtype=dtype, device="cuda")
    f(x)
    x[4] = -2
    with pytest.raises(NaNError, match=r"sqrt makes NaN .*\nelement \[4\] of shape \[10\]"):
        f(x)


def test_a_backward_is_looked_at() -> None:
    f = tg.compile(lambda x: (x.sqrt() * 0).sum(), debug=True)
    f(tg.ones(3, device="cuda", requires_grad=True)).backward()
    bad = tg.tensor([1.0, 0.0, 4.0], device="cuda", requires_grad=True)
    with pytest.raises(NaNError, match=rf"_backward: \w+ makes NaN .* at {FILE}"):
        f(bad).backward()


def test_a_nan_that_only_the_kernel_makes_names_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    f = tg.compile(lambda x: x.sqrt() + 1, debug=True, verify="off")
    x = tg.ones(10, device="cuda")
    f(x)
    monkeypatch.setattr(debugging, "origin", lambda graph, arrays: None)
    x[4] = -2
    with pytest.raises(NaNError, match=rf"a NaN behind launch 1 of 1, kernel_0 \({FILE}:\d+: f = "):
        f(x)


def test_what_the_device_reports_names_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    f = tg.compile(lambda x: x.sqrt() + 1, debug=True)
    x = tg.ones(10, device="cuda")
    f(x)

    def broken(device: int) -> None:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(driver, "synchronize", broken)
    text = rf"an illegal memory access was encountered\nThe host waited: it is launch 1 of 1, kernel_0 \({FILE}:"
    with pytest.raises(AcceleratorError, match=text):
        f(x)


def test_an_index_out_of_bounds_is_told() -> None:
    f = tg.compile(lambda x, i: x[i] * 2, debug=True)
    x, i = tg.ones(10, device="cuda"), tg.tensor([1, 2], device="cuda")
    f(x, i)
    i[0] = 12
    with pytest.raises(BoundsError, match="index 12 is out of bounds for dimension 0 with size 10"):
        f(x, i)
