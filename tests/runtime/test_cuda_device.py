"""The CUDA runtime on a device: a GPU, or the emulated one, which `test_cuda_emulated.py` starts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_units import (
    FAULTY,
    HEAD,
    REVERSE,
    SCALE,
    build,
    call,
    floats,
    get,
    product_unit,
    put,
    scale_unit,
    take_unit,
    unit,
)

import tracegrad as tg
from tracegrad.codegen.cuda.plan import Launch, Place, Product
from tracegrad.ir import dtypes
from tracegrad.ir.errors import (
    AcceleratorError,
    BoundsError,
    DivisionByZeroError,
    OutOfMemoryError,
)
from tracegrad.ir.types import TensorType
from tracegrad.runtime import history, toolchain
from tracegrad.runtime.cuda import cubins, cublas, driver, events, memory
from tracegrad.runtime.cuda.memory import ROUND
from tracegrad.runtime.cuda.pinned import Pinned

problem = driver.status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(problem is not None, reason=f"no CUDA: {problem}"),
]
caching = pytest.mark.skipif(
    os.environ.get("TRACEGRAD_NO_CUDA_MEMORY_CACHING", "") not in ("", "0"), reason="no caching"
)
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache_dir(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for these tests: what they launch with is compiled once."""
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(shared_folder))
    history.clear_history()
    return shared_folder


# --- the device and its memory --------------------------------------------------------------------


def test_a_device_says_what_it_is() -> None:
    assert driver.device_count() >= 1
    assert driver.name(0)
    assert driver.arch(0) == "sm_{}{}".format(*driver.capability(0))
    assert driver.multiprocessors(0) >= 1
    free, total = driver.memory_info(0)
    assert 0 < free <= total <= driver.total_memory(0)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(AcceleratorError, match="invalid device ordinal"):
        driver.name(driver.device_count())
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        tg.cuda.set_device(driver.device_count())


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5), (100_000,)])
def test_copies_keep_every_bit(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.array(rng.integers(0, 2, shape)).astype(dtype)
    assert get(put(array), shape, dtype).tobytes() == array.tobytes()


def test_a_copy_outside_of_the_memory_is_refused() -> None:
    with pytest.raises(AcceleratorError, match=r"invalid argument \(code 1, in cuMemcpyHtoD_v2\)"):
        driver.to_device(64, np.zeros(4), 0)


def test_copies_need_contiguous_arrays() -> None:
    there = put(np.zeros(8, np.float32))
    with pytest.raises(AcceleratorError, match="contiguous"):
        driver.to_device(there.address, np.zeros((8, 2), np.float32)[:, 0], 0)


def test_copies_from_and_to_pinned_memory_need_not_wait() -> None:
    source, target = (np.asarray(Pinned(4096, 0)) for _ in range(2))
    source[:] = np.arange(4096) % 251
    there = memory.allocate(4096, 0)
    driver.to_device(there.address, source, 0, wait=False)
    driver.to_host(target, there.address, 0, wait=False)
    driver.synchronize(0)
    np.testing.assert_array_equal(target, source)


def test_copies_within_the_device_and_fills() -> None:
    array = np.arange(100, dtype=np.int32)
    one, other = put(array), put(np.zeros(100, np.int32))
    driver.within_device(other.address + 40, one.address, 200, 0)
    driver.fill_bytes(other.address, 255, 8, 0)
    expected = np.concatenate([np.zeros(10), array[:50], np.zeros(40)]).astype(np.int32)
    expected[:2] = -1
    np.testing.assert_array_equal(get(other, (100,), np.int32), expected)


def test_copies_between_devices() -> None:
    if driver.device_count() < 2:
        pytest.skip("one device")
    array = np.arange(10, dtype=np.float64)
    one, other = put(array, 0), memory.allocate(array.nbytes, 1)
    driver.within_device(other.address, one.address, array.nbytes, 1, 0)
    np.testing.assert_array_equal(get(other, (10,), np.float64), array)


def test_a_request_past_the_memory_leaves_all_as_it_was() -> None:
    kept = put(np.arange(5, dtype=np.float32))
    before = memory.memory_allocated(0)
    total = driver.memory_info(0)[1]
    with pytest.raises(OutOfMemoryError) as caught:
        memory.allocate(2 * total, 0)
    text = str(caught.value)
    assert text.startswith(f"CUDA out of memory. Tried to allocate {memory.format_size(2 * total)}")
    assert f"GPU 0 has a total capacity of {memory.format_size(total)} of which " in text
    assert isinstance(caught.value, RuntimeError)
    assert memory.memory_allocated(0) == before
    np.testing.assert_array_equal(get(kept, (5,)), np.arange(5))
    assert memory.allocate(1 << 20, 0).address % ROUND == 0


@caching
def test_the_pool_gives_back_what_it_keeps_when_the_driver_has_none_left() -> None:
    memory.empty_cache()
    free, _ = driver.memory_info(0)
    first = memory.allocate(free * 3 // 5, 0)
    del first
    retries = memory.memory_stats(0)["num_alloc_retries"]
    second = memory.allocate(free * 7 // 10, 0)  # fits only where the first has gone
    assert memory.memory_stats(0)["num_alloc_retries"] == retries + 1
    del second
    memory.empty_cache()


# --- executables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 255, 1000, 100_003])
def test_launches_run_in_order_through_the_arena(n: int) -> None:
    x = rng.standard_normal(n).astype(np.float32)
    made = build(scale_unit(n), 1, floats(n))
    there = put(x)
    for _ in range(3):
        (result,) = made.call(there.address)
        np.testing.assert_array_equal(get(result, (n,)), (x * 2 + 1) * 2 + 1)
    assert made.record.launches == 3
    assert result.nbytes == 4 * n


def test_results_of_many_calls_do_not_share_memory() -> None:
    made = build(scale_unit(1000), 1, floats(1000))
    inputs = [put(np.full(1000, k, np.float32)) for k in range(20)]
    results = [made.call(there.address)[0] for there in inputs]
    for k, result in enumerate(results):
        np.testing.assert_array_equal(get(result, (1000,)), np.full(1000, (k * 2 + 1) * 2 + 1))


def test_calls_from_many_threads() -> None:
    made = build(scale_unit(5000), 1, floats(5000))
    wrong: list[object] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal(5000).astype(np.float32)
        try:
            there = put(x)
            for _ in range(20):
                (result,) = made.call(there.address)
                if not np.array_equal(get(result, (5000,)), (x * 2 + 1) * 2 + 1):
                    wrong.append(seed)
        except Exception as error:  # a thread has no other way to say it
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_index_out_of_bounds_is_raised_and_the_next_call_is_clean() -> None:
    made = build(take_unit(3, 10), 2, floats(3))
    x = put(np.arange(10, dtype=np.float32))
    good, bad = put(np.array([1, 9, 0])), put(np.array([1, 10, 0]))
    for _ in range(2):
        with pytest.raises(
            BoundsError, match="index 10 is out of bounds for dimension 0 with size 10"
        ):
            made.call(bad.address, x.address)
        np.testing.assert_array_equal(get(made.call(good.address, x.address)[0], (3,)), [1, 9, 0])
    with pytest.raises(DivisionByZeroError, match="an integer divisor is 0"):
        call(made, np.array([-99, 0, 0]), np.zeros(10, np.float32))
    assert made.record.launches == 2


def test_more_than_48_kib_of_shared_memory() -> None:
    launch = Launch("reverse", (Place("input"), Place("output")), (), (1, 1, 1), (256, 1, 1), 65536)
    x = rng.standard_normal(16384).astype(np.float32)
    made = build(unit(REVERSE, [launch]), 1, floats(16384))
    np.testing.assert_array_equal(get(call(made, x), (16384,)), x[::-1])


def test_more_shared_memory_than_there_is_is_refused_when_it_is_loaded() -> None:
    launch = Launch(
        "reverse", (Place("input"), Place("output")), (), (1, 1, 1), (256, 1, 1), 1 << 20
    )
    with pytest.raises(AcceleratorError, match="reverse: 1048576 bytes of shared memory"):
        build(unit(REVERSE, [launch]), 1, floats(16384))


def test_a_kernel_that_the_code_lacks_is_named() -> None:
    launch = Launch("absent", (Place("output"),))
    with pytest.raises(AcceleratorError, match="cuModuleGetFunction of absent"):
        build(unit(SCALE, [launch]), 0, floats(1))


def test_a_launch_that_the_driver_refuses_is_named() -> None:
    wide = Launch("scale", (Place("input"), Place("output")), (1,), (1, 1, 1), (2048, 1, 1))
    made = build(unit(SCALE, [wide]), 1, floats(1))
    with pytest.raises(AcceleratorError, match=r"invalid argument .*launch 1 of 1, scale"):
        call(made, np.zeros(1, np.float32))


def test_without_a_c_compiler_python_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(toolchain.NoCompilerWarning):
        made = build(scale_unit(1000), 1, floats(1000))
    x = rng.standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(get(call(made, x), (1000,)), (x * 2 + 1) * 2 + 1)
    taking = build(take_unit(2, 4), 2, floats(2))
    with pytest.raises(BoundsError, match="index 7"):
        call(taking, np.array([0, 7]), x)
    shared = Launch("reverse", (Place("input"), Place("output")), (), (1, 1, 1), (256, 1, 1), 65536)
    long = rng.standard_normal(16384).astype(np.float32)
    turned = call(build(unit(REVERSE, [shared]), 1, floats(16384)), long)
    np.testing.assert_array_equal(get(turned, (16384,)), long[::-1])


def test_the_history_has_one_line_and_counts_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path))
    cubins.forget()
    made = build(scale_unit(1000), 1, floats(1000))
    assert history.kernel_history() == [made.record]
    assert (made.record.cache, made.record.key) == ("built", made.key)
    assert Path(made.record.source).read_text() == SCALE
    again = build(scale_unit(1000), 1, floats(1000))
    assert again.record.cache == "memory"
    cubins.forget()
    assert build(scale_unit(1000), 1, floats(1000)).record.cache == "disk"


def test_timing_waits_for_the_device() -> None:
    made = build(scale_unit(100_000), 1, floats(100_000))
    there = put(np.zeros(100_000, np.float32))
    history.timing(True)
    try:
        made.call(there.address)
    finally:
        history.timing(False)
    made.call(there.address)
    assert (made.record.timed, made.record.launches) == (1, 2)
    assert made.record.run_ms > 0


def test_outputs_die_where_a_call_fails() -> None:
    made = build(take_unit(1000, 10), 2, floats(1000))
    bad, x = put(np.full(1000, 11)), put(np.zeros(10, np.float32))
    before = memory.memory_allocated(0)
    for _ in range(5):
        with pytest.raises(BoundsError):
            made.call(bad.address, x.address)
    assert memory.memory_allocated(0) <= before + 1024  # a status


@caching
def test_a_call_for_which_there_is_no_memory_can_be_made_again_later() -> None:
    memory.empty_cache()
    n = 1 << 20
    made, there = build(scale_unit(n), 1, floats(n)), put(np.ones(n, np.float32))
    ballast = []
    with pytest.raises(OutOfMemoryError, match="Tried to allocate 4.00 MiB"):
        while True:  # the last of it in small pieces, so that nothing is left
            free = driver.memory_info(0)[0]
            ballast.append(
                memory.allocate(free // 2, 0) if free > 64 << 20 else made.call(there.address)
            )
    assert made.record.launches == sum(isinstance(b, tuple) for b in ballast)
    ballast.clear()
    np.testing.assert_array_equal(get(made.call(there.address)[0], (n,)), np.full(n, 7))
    memory.empty_cache()


def test_a_context_of_another_library_stays_current() -> None:
    drv = pytest.importorskip("pycuda.driver")
    if not hasattr(drv, "mem_alloc"):
        pytest.skip("pycuda is a double")
    made = build(scale_unit(10), 1, floats(10))
    there = put(np.zeros(10, np.float32))
    theirs = drv.Device(0).make_context()
    try:
        made.call(there.address)
        assert drv.Context.get_current() == theirs
        drv.mem_alloc(1000).free()
    finally:
        theirs.pop()
        theirs.detach()
    assert get(made.call(there.address)[0], (10,))[0] == 3


# --- products -------------------------------------------------------------------------------------

products = pytest.mark.skipif(not cublas.cublas_available(), reason="no cuBLAS")
DTYPES = {
    "float32": (np.float32, 1e-5),
    "float64": (np.float64, 1e-13),
    "float16": (np.float16, 2e-3),
    "bfloat16": (ml_dtypes.bfloat16, 2e-2),
}


@products
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_cublas(dtype: str, transposed: tuple[bool, bool]) -> None:
    kind, tolerance = DTYPES[dtype]  # rounding of the result, and of sums in float
    batch, m, n, k = 3, 5, 7, 11
    a, b = (rng.standard_normal(s).astype(kind) for s in ((batch, m, k), (batch, k, n)))
    shown = [x.swapaxes(1, 2).copy() if t else x for x, t in zip((a, b), transposed, strict=True)]
    leading = (shown[0].shape[2], shown[1].shape[2], n)
    product = Product(dtype, m, n, k, batch, transposed, leading, (m * k, k * n, m * n))
    made = build(product_unit(product), 2, TensorType((batch, m, n), dtypes.by_name(dtype)))
    result = call(made, *shown)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    found = get(result, (batch, m, n), kind).astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * 5)


@products
def test_a_product_with_offsets_gaps_and_a_shared_operand() -> None:
    a = rng.standard_normal((4, 6, 10)).astype(np.float32)
    b = rng.standard_normal((12, 9)).astype(np.float32)
    product = Product(
        "float32", 3, 4, 5, 4, (False, False), (10, 9, 4), (60, 0, 12), (10 + 2, 18 + 3, 0)
    )
    made = build(product_unit(product), 2, floats(4, 3, 4))
    result = call(made, a, b)
    expected = a[:, 1:4, 2:7].astype(np.float64) @ b[2:7, 3:7]
    np.testing.assert_allclose(get(result, (4, 3, 4)), expected, rtol=1e-5, atol=1e-5)


@products
def test_a_product_between_kernels() -> None:
    n = 64
    grid, block = (n * n // 256, 1, 1), (256, 1, 1)
    middle, last = Place("arena", 0), Place("arena", 4 * n * n)
    square = Product("float32", n, n, n, 1, (False, False), (n, n, n), (0, 0, 0))
    steps = [
        Launch("scale", (Place("input"), middle), (n * n,), grid, block),
        Launch("", (middle, middle, last), product=square),
        Launch("scale", (last, Place("output")), (n * n,), grid, block),
    ]
    made = build(unit(SCALE, steps, 8 * n * n), 1, floats(n, n))
    x = rng.standard_normal((n, n)).astype(np.float32)
    y = x * 2.0 + 1
    np.testing.assert_allclose(get(call(made, x), (n, n)), (y @ y) * 2 + 1, rtol=1e-4, atol=1e-3)


@products
def test_tf32_is_off_unless_it_is_allowed() -> None:
    n = 256
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    product = Product("float32", n, n, n, 1, (False, False), (n, n, n), (0, 0, 0))
    made = build(product_unit(product), 2, floats(n, n))
    places = put(a), put(b)
    exact = a.astype(np.float64) @ b

    def error() -> float:
        (result,) = made.call(*(p.address for p in places))
        return float(np.abs(get(result, (n, n)) - exact).max())

    assert error() < 1e-4
    cublas.allow_tf32(True)
    try:
        assert error() < 0.2
    finally:
        cublas.allow_tf32(False)
    assert error() < 1e-4


# --- streams, events, the public module -----------------------------------------------------------


def test_events_time_the_stream() -> None:
    start, end = (tg.cuda.Event(enable_timing=True) for _ in range(2))
    there = put(np.zeros(1 << 20, np.float32))
    start.record()
    driver.fill_bytes(there.address, 1, there.nbytes, 0)
    end.record()
    end.synchronize()
    assert end.query()
    assert 0 < start.elapsed_time(end) < 1000


def test_events_die_in_any_thread(recwarn: pytest.WarningsRecorder) -> None:
    held = [events.Event(0) for _ in range(3)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert not recwarn.list


def test_memory_dies_in_any_thread(recwarn: pytest.WarningsRecorder) -> None:
    held = [memory.allocate(3 << 20, 0) for _ in range(3)]
    before = memory.memory_allocated(0)
    thread = threading.Thread(target=lambda: (held.clear(), memory.empty_cache()))
    thread.start()
    thread.join()
    assert memory.memory_allocated(0) == before - (9 << 20)
    assert not recwarn.list


def test_the_public_module_tells_what_the_driver_does() -> None:
    assert tg.cuda.is_available()
    tg.cuda.init()
    assert tg.cuda.is_initialized()
    assert tg.cuda.current_device() == 0
    properties = tg.cuda.get_device_properties("cuda")
    assert properties.name == tg.cuda.get_device_name(0)
    assert (properties.major, properties.minor) == tg.cuda.get_device_capability()
    assert properties.multi_processor_count == driver.multiprocessors(0)
    tg.cuda.synchronize()
    free, total = tg.cuda.mem_get_info()
    assert free <= total
    with tg.cuda.stream(tg.cuda.Stream()) as stream:
        assert stream == tg.cuda.current_stream() == tg.cuda.default_stream()
        stream.synchronize()
        assert stream.query()
        stream.record_event().wait()


@caching
def test_memory_is_counted() -> None:
    tg.cuda.reset_peak_memory_stats()
    before = tg.cuda.memory_allocated()
    held = memory.allocate(1000, 0)
    assert tg.cuda.memory_allocated() == before + 1024
    del held
    assert tg.cuda.memory_allocated() == before
    assert tg.cuda.max_memory_allocated() == before + 1024
    assert tg.cuda.memory_reserved() >= tg.cuda.memory_allocated()
    tg.cuda.empty_cache()


def test_another_device_is_current_inside_its_block() -> None:
    if driver.device_count() < 2:
        pytest.skip("one device")
    with tg.cuda.device(1):
        assert tg.cuda.current_device() == 1
        made = build(scale_unit(100), 1, floats(100), device=1)
        x = put(np.zeros(100, np.float32), 1)
        (result,) = made.call(x.address)
        assert result.device == 1
        assert get(result, (100,))[99] == 3
    assert tg.cuda.current_device() == 0


# --- processes ------------------------------------------------------------------------------------


def test_a_fault_in_a_kernel_is_told_by_every_later_call() -> None:
    command = [sys.executable, "-c", HEAD + textwrap.dedent(FAULTY)]
    done = subprocess.run(command, capture_output=True, text=True, env=child())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all("an illegal memory access was encountered" in line for line in lines)


def test_a_process_ends_well_while_threads_use_the_device() -> None:
    program = """
        made = build(scale_unit(100), 1, floats(100))
        begun = threading.Event()
        def work():
            while True:
                x = put(np.zeros(100, np.float32))
                get(made.call(x.address)[0], (100,))
                begun.set()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        begun.wait()
    """
    command = [sys.executable, "-c", HEAD + textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=child())
    assert (done.returncode, done.stderr) == (0, "")


def child() -> dict[str, str]:
    """The environment of a process that finds `cuda_units`."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
