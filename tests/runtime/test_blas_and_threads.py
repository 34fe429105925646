"""BLAS addresses give right products; the thread count reaches kernels; fork is survived."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.runtime import blas, kernels, threads

PRODUCTS = """\
#include <stdint.h>
static void *functions[5];
void tg_init(void **table) { for (int i = 0; i < 5; i++) functions[i] = table[i]; }
#define PRODUCT(name, real, integer, gemm, gemv)                                                  \\
    static void name(void **args) {                                                               \\
        ((void (*)(int, int, int, integer, integer, integer, real, const real *, integer,         \\
                   const real *, integer, real, real *, integer))functions[gemm])(                \\
            101, 111, 112, 5, 3, 7, 2, args[0], 7, args[1], 7, 1, args[2], 3);                    \\
        ((void (*)(int, int, integer, integer, real, const real *, integer, const real *,         \\
                   integer, real, real *, integer))functions[gemv])(                              \\
            101, 111, 5, 7, 1, args[0], 7, args[1], 1, 0, args[3], 1);                            \\
    }
PRODUCT(single32, float, int, 0, 2)
PRODUCT(double32, double, int, 1, 3)
PRODUCT(single64, float, int64_t, 0, 2)
PRODUCT(double64, double, int64_t, 1, 3)
int tg_run(void **args) {
    int bits = (int)(intptr_t)functions[4], is_double = *(int *)args[4];
    if (bits == 32) (is_double ? double32 : single32)(args);
    if (bits == 64) (is_double ? double64 : single64)(args);
    return bits;
}
"""


def backends() -> list[blas.Blas | None]:
    return [blas._own_copy(), blas._numpy_copy()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", [0, 1])
def test_products_through_the_table_are_right(
    which: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends()[which]
    if backend is None:
        pytest.skip("this library is not installed here")
    monkeypatch.setattr(blas, "find", lambda: backend)
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(-9, 9, s).astype(dtype) for s in ((5, 7), (3, 7), (5, 3)))
    v, is_double = np.zeros(5, dtype), np.array([dtype is np.float64], np.int32)
    expected = 2 * a @ b.T + c  # whole numbers: exact in either type
    kernel = kernels.load(PRODUCTS, label="products")
    kernels.unload_all()
    arrays = (a, b, c, v, is_double)
    assert kernel.run(tuple(kernels.address_of(x) for x in arrays)) == backend.int_bits
    np.testing.assert_array_equal(c, expected)
    np.testing.assert_array_equal(v, a @ b[0])


def test_kernel_without_a_blas_sees_an_empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "find", lambda: None)
    kernel = kernels.load(PRODUCTS, label="products")
    assert kernel.run((kernels.address_of(np.zeros(1, np.int32)),) * 5) == 0


def test_own_copy_is_preferred_and_runs_on_one_thread() -> None:
    found = blas.find()
    assert found is not None and found is blas.find()
    if found.private:
        assert blas._libraries[found.path].scipy_openblas_get_num_threads() == 1


def test_numpys_thread_pool_is_left_alone(python: Callable[..., subprocess.Popen[str]]) -> None:
    pytest.importorskip("threadpoolctl")
    code = """
        import numpy, threadpoolctl
        before = {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
        from tracegrad.runtime import blas
        blas.find()
        after = {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
        assert before and before == {path: after[path] for path in before}, (before, after)
    """
    process = python(code)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)


COUNT = """\
static const int *threads;
void tg_init_threads(const int *count) { threads = count; }
int omp_get_thread_num(void);
int tg_run(void **args) {
    int *seen = args[0];
    #pragma omp parallel num_threads(*threads)
    seen[omp_get_thread_num()] = 1;
    return *threads;
}
"""


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
    """Run a kernel: the count that it was given, and how many threads ran."""
    before = threads.get_num_threads()
    kernel = kernels.load(COUNT, label="count")

    def run() -> tuple[int, int]:
        seen = np.zeros(64, np.int32)
        return kernel.run((kernels.address_of(seen),)), int(seen.sum())

    yield run
    threads.set_num_threads(before)


def test_set_num_threads_reaches_loaded_kernels(counting: Callable[[], tuple[int, int]]) -> None:
    for count in (1, 3, 2):
        threads.set_num_threads(count)
        assert threads.get_num_threads() == count
        assert counting() == (count, count)


def test_set_num_threads_reaches_kernels_on_other_python_threads(
    counting: Callable[[], tuple[int, int]],
) -> None:
    threads.set_num_threads(2)
    found: list[tuple[int, int]] = []
    worker = threading.Thread(target=lambda: found.append(counting()))
    worker.start()
    worker.join()
    assert found == [(2, 2)]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ParameterError, "positive integer; got 0"),
        (-2, ParameterError, "positive integer; got -2"),
        (2.0, OperandError, "expects an int, but got float"),
        (True, OperandError, "expects an int, but got bool"),
    ],
)
def test_set_num_threads_refuses(value: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        threads.set_num_threads(value)  # type: ignore[arg-type]


def test_default_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACEGRAD_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert threads.default_num_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert threads.default_num_threads() == 5
    monkeypatch.setenv("TRACEGRAD_NUM_THREADS", "3")
    assert threads.default_num_threads() == 3
    monkeypatch.setenv("TRACEGRAD_NUM_THREADS", "many")
    with pytest.raises(ParameterError, match="TRACEGRAD_NUM_THREADS must be a whole number"):
        threads.default_num_threads()


def test_loading_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TG_SET_BY_USER", "user")
    monkeypatch.delenv("TG_SET_BY_US", raising=False)
    with threads.prepare_environment(TG_SET_BY_USER="ours", TG_SET_BY_US="ours"):
        assert (os.environ["TG_SET_BY_USER"], os.environ["TG_SET_BY_US"]) == ("user", "ours")
    assert os.environ["TG_SET_BY_USER"] == "user" and "TG_SET_BY_US" not in os.environ


FORK = f"""
    import os, time, warnings
    import numpy as np
    from tracegrad.runtime import kernels, threads
    kernel = kernels.load('''{COUNT}''', label="count")
    def run():
        seen = np.zeros(64, np.int32)
        kernel.run((kernels.address_of(seen),))
        return int(seen.sum())
    threads.set_num_threads(2)
    assert run() == 2
    pid = os.fork()
    if pid == 0:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            threads.set_num_threads(2)
        os._exit(0 if run() == 1 and "[fork-threads]" in str(seen[0].message) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run() == 2
"""


def test_forked_child_runs_kernels_on_one_thread(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    process = python(FORK.replace("\n    ", "\n"))
    try:
        _, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("the forked child hangs")
    assert (process.returncode, err) == (0, "")


def test_process_with_waiting_threads_ends_cleanly(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Unloading OpenMP at exit under its spinning threads would be a segmentation fault."""
    program = FORK.split("    pid = os.fork()")[0].replace("\n    ", "\n")
    start = time.perf_counter()
    for _ in range(4):
        process = python(program, GOMP_SPINCOUNT="100000000")
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    assert time.perf_counter() - start < 30


CONCURRENT = """\
static void *functions[5];
static const int *threads;
void tg_init(void **table) { for (int i = 0; i < 5; i++) functions[i] = table[i]; }
void tg_init_threads(const int *count) { threads = count; }
int tg_run(void **args) {
    void (*sgemm)(int, int, int, int, int, int, float, const float *, int, const float *, int,
                  float, float *, int) = functions[0];
    float *c = args[2];
    #pragma omp parallel for num_threads(*threads) schedule(static, 1)
    for (int k = 0; k < 64; k++)
        sgemm(101, 111, 111, 48, 40, 56, 1, args[0], 56, args[1], 40, 0, c + k * 48 * 40, 40);
    return 0;
}
"""


def test_own_copy_serves_several_threads_at_once() -> None:
    found = blas.find()
    if found is None or not found.private:
        pytest.skip("scipy_openblas32 is not installed here")
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-9, 9, s).astype(np.float32) for s in ((48, 56), (56, 40)))
    c = np.empty((64, 48, 40), np.float32)
    kernel = kernels.load(CONCURRENT, label="concurrent")
    before = threads.get_num_threads()
    threads.set_num_threads(4)
    try:
        for _ in range(50):
            c[:] = np.nan
            kernel.run(tuple(kernels.address_of(x) for x in (a, b, c)))
            np.testing.assert_array_equal(c, np.broadcast_to(a @ b, c.shape))  # whole numbers
    finally:
        threads.set_num_threads(before)
