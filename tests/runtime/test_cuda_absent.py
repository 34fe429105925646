"""What users are told where there is no CUDA: no pycuda, no driver, no device."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import tracegrad as tg
from tracegrad.ir.errors import AcceleratorError, ParameterError
from tracegrad.runtime import doctor
from tracegrad.runtime.cuda import cublas, driver


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process without pycuda."""
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    found = driver.status, driver._pycuda
    for cached in found:
        cached.cache_clear()
    yield
    for cached in found:
        cached.cache_clear()


pytestmark = pytest.mark.usefixtures("absent")


def test_nothing_is_available() -> None:
    assert (driver.status() or "").startswith("pycuda is not installed (pycuda")
    assert not tg.cuda.is_available()
    assert tg.cuda.device_count() == 0
    assert not cublas.cublas_available()
    (text,) = (row.found for row in doctor.rows() if row.name == "CUDA")
    assert text == f"not used: {driver.status()}"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: tg.cuda.init(),
        lambda: tg.cuda.current_device(),
        lambda: tg.cuda.synchronize(),
        lambda: tg.cuda.get_device_name(),
        lambda: tg.cuda.get_device_capability(0),
        lambda: tg.cuda.get_device_properties("cuda"),
        lambda: tg.cuda.mem_get_info(),
        lambda: tg.cuda.set_device(0),
        lambda: tg.cuda.Stream(),
        lambda: tg.cuda.current_stream(),
        lambda: tg.cuda.Event().record(),
        lambda: tg.cuda.device(0).__enter__(),
    ],
)
def test_what_needs_a_device_says_what_is_missing(ask) -> None:
    with pytest.raises(RuntimeError, match="no CUDA here: pycuda is not installed"):
        ask()


def test_the_driver_says_what_is_missing() -> None:
    with pytest.raises(AcceleratorError, match="CUDA cannot be used: pycuda is not installed"):
        driver.alloc(100, 0)


@pytest.mark.parametrize(
    "problem, text",
    [
        ("no CUDA driver (libcuda.so.1: gone)", "Found no NVIDIA driver on your system.*gone"),
        (
            "pycuda was built for a newer CUDA driver (undefined symbol)",
            "driver .* is too old: pycuda",
        ),
        ("no CUDA device (cuInit failed)", r"No CUDA GPUs are available \(no CUDA device"),
    ],
)
def test_init_says_what_pytorch_says(
    monkeypatch: pytest.MonkeyPatch, problem: str, text: str
) -> None:
    monkeypatch.setattr(driver, "status", lambda: problem)
    with pytest.raises(RuntimeError, match=text):
        tg.cuda.init()


def test_what_needs_no_device_works() -> None:
    assert tg.cuda.memory_allocated() == tg.cuda.max_memory_allocated() == 0
    assert tg.cuda.memory_reserved() == tg.cuda.max_memory_reserved() == 0
    tg.cuda.reset_peak_memory_stats()
    tg.cuda.empty_cache()
    tg.cuda.manual_seed(3)
    tg.cuda.manual_seed_all(4)
    event = tg.cuda.Event(enable_timing=True)
    assert event.query()
    event.synchronize()
    with pytest.raises(RuntimeError, match="must be recorded before"):
        event.elapsed_time(event)
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        event.elapsed_time(tg.cuda.Event())
    with tg.cuda.device(-1), tg.cuda.stream(None):
        pass


def test_devices_of_other_kinds_are_refused() -> None:
    with pytest.raises(ParameterError, match="Expected a cuda device, but got: cpu"):
        tg.cuda.memory_allocated("cpu")
    with pytest.raises(ParameterError, match="not shared between processes"):
        tg.cuda.Event(interprocess=True)
