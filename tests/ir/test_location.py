"""The user's line: in locations and in warnings."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import tracegrad as tg
from tracegrad.ir import location
from tracegrad.runtime import executable
from tracegrad.runtime.folder import CacheWarning
from tracegrad.tracer.verification import EagerWarning

OURS = """
import contextlib, warnings
from tracegrad.ir.location import user_stacklevel

def warn():
    warnings.warn("careful", UserWarning, stacklevel=user_stacklevel())

@contextlib.contextmanager
def block():
    yield
    warn()

def within():
    with block():
        pass
"""


def ours() -> dict[str, Callable[[], None]]:
    """Functions that look like tracegrad's own."""
    names: dict[str, Callable[[], None]] = {}
    exec(compile(OURS, f"{location._ROOT}/tracer/looks_like_ours.py", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["warn", "within"])
def test_a_warning_shows_the_first_line_outside(name: str) -> None:
    function = ours()[name]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        function()
    assert [w.filename for w in seen] == [__file__]


def test_generated_text_is_ours() -> None:
    assert location.is_internal("<tracegrad launcher of f>")
    assert not location.is_internal("<stdin>")


def test_a_function_that_stays_eager_shows_the_call() -> None:
    f = tg.compile(lambda x: x * time.perf_counter())
    with pytest.warns(EagerWarning) as seen:
        f(tg.ones(3))
    assert seen[0].filename == __file__


def test_the_gradient_of_a_result_shows_the_read() -> None:
    y = tg.ones(3, requires_grad=True) * 2
    with pytest.warns(UserWarning, match="leaf") as seen:
        y.grad  # noqa: B018
    assert seen[0].filename == __file__


def test_a_backward_that_the_compiler_refuses_shows_the_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    f = tg.compile(lambda x: (tg.sin(x) * x).sum())
    x = tg.ones(3, requires_grad=True)
    f(x)
    y = f(x)

    def refuse(*args: object, **options: object) -> None:
        raise tg.errors.CompileError("refused")

    monkeypatch.setattr(executable, "build", refuse)
    with pytest.warns(EagerWarning, match="the backward of <lambda> runs eagerly: refused") as seen:
        y.backward()
    assert seen[0].filename == __file__
    assert x.grad.tolist() == pytest.approx([math.sin(1.0) + math.cos(1.0)] * 3, rel=1e-6)


def test_a_cache_folder_that_cannot_be_used_shows_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "file"))
    f = tg.compile(lambda x: x * 3 + 0.625)
    with pytest.warns(CacheWarning) as seen:
        f(tg.ones(3))
    assert {w.filename for w in seen} == {__file__}


def test_copying_a_tensor_shows_the_call() -> None:
    with pytest.warns(UserWarning, match="copy construct") as seen:
        tg.tensor(tg.ones(2))
    assert seen[0].filename == __file__


def test_anomalies_show_the_backward() -> None:
    x = tg.zeros(1, requires_grad=True)
    with tg.autograd.detect_anomaly(check_nan=True):
        y = tg.sqrt(x) * 0.0
        with pytest.warns(UserWarning, match="Error detected") as seen, pytest.raises(RuntimeError):
            y.sum().backward()
    assert {w.filename for w in seen} == {__file__}
