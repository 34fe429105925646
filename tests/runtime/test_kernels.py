"""Loading: origins, argument tables, threads and processes that race, a warm process."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections import Counter
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from kernel_source import launch, source

from tracegrad.runtime import cache, history, inventory, kernels, make_abi

Start = Callable[..., "subprocess.Popen[str]"]


def test_origin_is_built_then_memory_then_disk() -> None:
    built = kernels.load(source(2), label="f")
    memory = kernels.load(source(2), label="f")
    kernels.unload_all()
    disk = kernels.load(source(2), label="f")
    assert [k.origin for k in (built, memory, disk)] == ["built", "memory", "disk"]
    assert built.compile_ms > 0 and memory.compile_ms == disk.compile_ms == 0
    assert all(launch(k) == [2, 4, 6, 8] for k in (built, memory, disk))
    assert built.run((kernels.address_of(np.ones(4, np.float32)),) * 2) == 2


def test_debug_build_is_an_entry_of_its_own_and_gives_the_same() -> None:
    plain = kernels.load(source(2), label="f")
    debug = kernels.load(source(2), label="f", debug=True)
    assert plain.key != debug.key and launch(plain) == launch(debug)
    assert b".debug_info" in debug.path.read_bytes()
    assert b".debug_info" not in plain.path.read_bytes()


def test_listing_is_kept_beside_the_source() -> None:
    kernel = kernels.load(source(2), label="f", listing="/* model.py:41 */")
    assert kernel.path.with_name("listing.c").read_text() == "/* model.py:41 */"
    assert kernel.path.with_name("kernel.c").read_text().startswith(source(2).rstrip())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.float32),
        np.zeros((), np.float64),
        np.zeros((0, 4), np.float32),
        np.zeros((4, 4))[1:, ::2],
        np.zeros((4, 4)).T,
        np.zeros(5)[::-1],
        np.broadcast_to(np.float32(1), (3, 3)),
        np.zeros(3, ml_dtypes.bfloat16),
        np.zeros(3, bool),
        np.frombuffer(b"12345678", np.uint8),
    ],
)
def test_pointer_is_the_address_of_the_first_element(array: np.ndarray) -> None:
    assert kernels.pointer(array) == array.ctypes.data


def test_new_args_is_zero_and_can_be_filled_from_arrays() -> None:
    args = kernels.new_args(2)
    assert args[0] == args[1] == kernels.ffi.NULL
    x, y = np.arange(1, 5, dtype=np.float32), np.zeros(4, np.float32)
    args[0], args[1] = kernels.ffi.from_buffer(x), kernels.address_of(y)
    assert kernels.load(source(3), label="f").run(args) == 3
    assert list(y) == [3, 6, 9, 12]


def test_many_threads_build_a_key_once() -> None:
    found: list[kernels.LoadedKernel] = []
    barrier = threading.Barrier(16)

    def work() -> None:
        barrier.wait()
        found.append(kernels.load(source(11), label="f"))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(k.origin for k in found) == {"built": 1, "memory": 15}
    assert all(launch(k) == [11, 22, 33, 44] for k in found)


RACE = """
    import sys
    from kernel_source import *
    sys.stdin.readline()
    for factor in (21, 22):
        kernel = kernels.load(source(factor), label="f")
        assert launch(kernel) == [factor * i for i in (1, 2, 3, 4)]
        print(kernel.origin)
"""


def test_processes_that_race_for_a_key_build_it_once(python: Start) -> None:
    processes = [python(RACE) for _ in range(8)]
    answers = [p.communicate("go\n", timeout=60) for p in processes]
    assert all(error == "" for _, error in answers)
    origins = Counter(word for out, _ in answers for word in out.split())
    assert origins == {"built": 2, "disk": 14}
    assert len(inventory.entries()) == 2


def test_publishing_a_key_twice_keeps_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernels.load(source(2), label="first")
    kernels.unload_all()
    real, calls = cache.find, []

    def late(key: str) -> cache.Entry | None:
        """Absent twice, as if the other process finished between the look-ups and the rename."""
        calls.append(key)
        return None if len(calls) <= 2 else real(key)

    monkeypatch.setattr(cache, "find", late)
    second = kernels.load(source(2), label="second")
    assert launch(second) == [2, 4, 6, 8] and second.path == first.path
    assert inventory.match(first.key).meta["label"] == "first"


WARM = """
    import sys, time
    import numpy
    from tracegrad.runtime import kernels
    from kernel_source import source, launch
    start = time.perf_counter()
    kernel = kernels.load(source(31), label="f")
    elapsed = (time.perf_counter() - start) * 1e3
    assert launch(kernel) == [31, 62, 93, 124]
    heavy = [m for m in ("pycparser", "cffi", "filelock", "jinja2", "scipy") if m in sys.modules]
    print(kernel.origin, heavy)
"""


def test_warm_process_compiles_nothing_and_imports_no_parser(python: Start) -> None:
    kernels.load(source(31), label="f")
    out, err = python(WARM, PATH="/nonexistent-path-with-no-compiler").communicate(timeout=60)
    assert "disk []" in out, err
    out, err = python(WARM).communicate(timeout=60)
    assert (out, err) == ("disk []\n", "")


def test_generated_declarations_are_up_to_date() -> None:
    assert make_abi.TARGET.read_text() == make_abi.generate()


def test_history_says_what_happened_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tracegrad"):
        kernels.load(source(2), label="f", codegen_ms=0.4, inputs=2, outputs=1, ops=5, bytes=96)
        kernels.load(source(2), label="f")
        kernels.unload_all()
        kernels.load(source(2), label="f")
    records = history.kernel_history()
    assert [r.cache for r in records] == ["built", "memory", "disk"]
    first = records[0]
    assert (first.label, first.inputs, first.outputs, first.ops, first.bytes) == ("f", 2, 1, 5, 96)
    assert first.compile_ms > 0 and first.load_ms >= first.compile_ms
    assert caplog.messages == [str(r) for r in records]
    start = f"launch {first.key[:6]} (in=2, out=1, ops=5): cache miss, codegen 0.4 ms, build "
    assert caplog.messages[0].startswith(start) and caplog.messages[0].endswith(" ms")
    assert caplog.messages[2].endswith("disk hit")
    history.clear_history()
    assert history.kernel_history() == []


def test_launches_are_counted_on_the_record_of_the_history() -> None:
    kernel = kernels.load(source(2), label="f")
    kernel.record.launches += 1
    assert history.kernel_history()[0].launches == 1
