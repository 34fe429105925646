"""What this machine offers, found by trying it: `python -m tracegrad doctor`.

`rows()` runs every check and gives one `Row` each; `report()` lays them out. A check that fails
becomes a row with the reason and the remedy; nothing here raises. Start reading at `rows`.
"""

from __future__ import annotations

import platform
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from tracegrad.ir.errors import CompileError
from tracegrad.runtime import blas, cache, folder, inventory, kernels, threads, toolchain
from tracegrad.runtime.cuda import compilers, cublas, driver

PACKAGES = ("numpy", "scipy", "cffi", "jinja2", "ml_dtypes", "scipy-openblas32", "pycuda")

_PROGRAM = """\
/* y[i] = sin(x[i]) over blocks on several threads; c = a b through BLAS where there is one. */
#include <math.h>
#include <stddef.h>
%(simd)s
static const int *threads;
static void **table;
void tg_init_threads(const int *count) { threads = count; }
void tg_init(void **blas) {
    static void *copy[5];
    for (int i = 0; i < 5; i++) copy[i] = blas[i];
    table = copy;
}
int tg_run(void **args) {
    const float *x = args[0];
    float *y = args[1];
    int *seen = args[2];
    #pragma omp parallel for num_threads(*threads) schedule(static, 1)
    for (ptrdiff_t block = 0; block < 64; block++) {
        seen[block] = 1;
        #pragma omp simd
        for (ptrdiff_t i = 0; i < 1024; i++) y[1024 * block + i] = sinf(x[1024 * block + i]);
    }
    typedef void sgemm32(int, int, int, int, int, int, float, const float *, int, const float *,
                         int, float, float *, int);
    typedef void sgemm64(int, int, int, ptrdiff_t, ptrdiff_t, ptrdiff_t, float, const float *,
                         ptrdiff_t, const float *, ptrdiff_t, float, float *, ptrdiff_t);
    const float *a = args[3], *b = args[4];
    if ((ptrdiff_t)table[4] == 32)
        ((sgemm32 *)table[0])(101, 111, 111, 33, 17, 65, 1, a, 65, b, 17, 0, args[5], 17);
    if ((ptrdiff_t)table[4] == 64)
        ((sgemm64 *)table[0])(101, 111, 111, 33, 17, 65, 1, a, 65, b, 17, 0, args[5], 17);
    return 0;
}
"""
_SIMD = '__attribute__((simd("notinbranch"))) float sinf(float);'


@dataclass(frozen=True)
class Row:
    """One line of the report: what was looked at, whether it works, and what was found."""

    name: str
    good: bool
    found: str


def rows() -> list[Row]:
    """Run every check: versions, compiler, test kernel, BLAS, threads, cache folder, CUDA."""
    result = [Row("tracegrad", True, _version("tracegrad"))]
    result.append(
        Row("python", True, f"{platform.python_version()} on {platform.platform(terse=True)}")
    )
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    result.append(Row("packages", True, found))
    for name, check in _CHECKS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the rows say the same, with more detail
            good, text = check()
        result.append(Row(name, good, text))
    return result


def report() -> str:
    """Run every check and lay the rows out."""
    return layout(rows())


def layout(checked: list[Row]) -> str:
    """The rows as text, one check a line, problems marked `!!`."""
    return "\n".join(f"{'ok' if r.good else '!!'}  {r.name:10} {r.found}" for r in checked)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _compiler() -> tuple[bool, str]:
    try:
        tool = toolchain.find()
    except CompileError as error:
        return False, str(error)
    text = f"{' '.join(tool.command)}: {tool.version}, for {tool.target}"
    missing = [c[0] for c in toolchain.OPTIONAL_FLAGS if not set(c) & set(tool.flags)]
    if missing:
        text += f"; refuses {' '.join(missing)}"
    if tool.problem:
        return False, f"{tool.problem}; only what {tool.version} made is left in the cache"
    return True, text


def _processor() -> tuple[bool, str]:
    return True, f"{toolchain.cpu_identity()}, {threads.default_num_threads()} processors to use"


def _kernel() -> tuple[bool, str]:
    """Compile, load and run the program above and compare every number it gives."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, 64 * 1024).astype(np.float32)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((33, 65), (65, 17)))
    y, c, seen = np.zeros_like(x), np.zeros((33, 17), np.float32), np.zeros(64, np.int32)
    simd = _SIMD if platform.libc_ver()[0] == "glibc" and platform.machine() == "x86_64" else ""
    try:
        with tempfile.TemporaryDirectory(prefix="tracegrad-doctor-") as scratch:
            kernel = kernels.build_apart(_PROGRAM % {"simd": simd}, Path(scratch))
    except (CompileError, OSError) as error:
        return False, str(error)
    kernel.run(tuple(kernels.address_of(v) for v in (x, y, seen, a, b, c)))
    wrong = float(np.max(np.abs(y - np.sin(x.astype(np.float64)))))
    if wrong > 4e-7 or not seen.all():  # 4 ulp at 1.0, what libmvec states
        return False, f"the test kernel computed sin with an error of {wrong:.1e}"
    text = f"compiled in {kernel.compile_ms:.0f} ms, loaded, ran; sin right to {wrong:.0e}"
    if blas.find() is not None:
        off = float(np.max(np.abs(c - a.astype(np.float64) @ b)))
        if off > 1e-4:
            return False, f"sgemm through the kernel is off by {off:.1e}"
        text += f", sgemm right to {off:.0e}"
    return True, text


def _blas() -> tuple[bool, str]:
    found = blas.find()
    if found is None:
        return False, "none; products use generated loops. Install it: pip install scipy-openblas32"
    kind = "own copy, one thread" if found.private else "shared with NumPy"
    return True, f"{found.name}, {found.int_bits}-bit integers, {kind}: {found.config}"


def _threads() -> tuple[bool, str]:
    count = threads.get_num_threads()
    try:
        openmp = toolchain.find().openmp
    except CompileError:
        openmp = False
    note = "" if openmp else "; the compiler has no OpenMP, so kernels use one"
    return openmp or count == 1, f"{count}{note}"


def _cache() -> tuple[bool, str]:
    store = folder.current()
    if not store.writable:
        return False, f"{store.root} is not used: {store.problem}"
    try:
        folder.remove_atomically(folder.temporary_folder(store.root, "doctor-"), store.root)
    except OSError as error:
        return False, f"{store.root} cannot be written: {error.strerror or error}"
    kept = len(inventory.entries())
    used, limit = cache.total_size() / 2**20, cache.size_limit() / 2**20
    return True, f"{store.root}: {kept} kernels, {used:.1f} of {limit:.0f} MiB"


def cuda_status() -> str | None:
    """None when CUDA is usable, else one line saying why not. Never raises, makes no context."""
    return driver.status()


def _cuda() -> tuple[bool, str]:
    problem = cuda_status()
    if problem is not None:
        return True, f"not used: {problem}"
    text = ", ".join(f"{driver.name(k)} ({driver.arch(k)})" for k in range(driver.device_count()))
    products = (
        "cuBLAS" if cublas.cublas_available() else "no cuBLAS, so products are generated loops"
    )
    try:
        compiler = compilers.find()
    except CompileError as error:
        return False, f"{text}, {products}; not used: {error}"
    name = "NVRTC" if compiler.kind == "nvrtc" else "nvcc"
    return True, f"usable: {text}; {name} ({compiler.path}: {compiler.version}); {products}"


_CHECKS: tuple[tuple[str, Callable[[], tuple[bool, str]]], ...] = (
    ("processor", _processor),
    ("compiler", _compiler),
    ("kernel", _kernel),
    ("BLAS", _blas),
    ("threads", _threads),
    ("cache", _cache),
    ("CUDA", _cuda),
)
