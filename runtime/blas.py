"""A BLAS for generated C: addresses of cblas functions, without linking.

`find()` looks for the package `scipy_openblas32` (a copy of OpenBLAS that only we use; it is set to
one thread, since kernels call it from their own threads), else for the OpenBLAS inside NumPy's
wheel, whose integers have 64 bits and whose thread pool stays as NumPy set it, else gives None.
Loaded when first asked for. Which functions: `FUNCTIONS`, in the order of the table that kernels
get.

Note [Two pools]
Two thread pools that run in turn slow each other down by a factor of ten, because idle workers
spin. Our copy is loaded with `OPENBLAS_NUM_THREADS=1`, so it never starts a worker.
"""

from __future__ import annotations

import glob
import os
import threading
from dataclasses import dataclass
from typing import Any

from tracegrad.runtime import threads
from tracegrad.runtime._abi import ffi

FUNCTIONS = ("sgemm", "dgemm", "sgemv", "dgemv")


@dataclass(frozen=True)
class Blas:
    """A loaded BLAS.

    Attributes:
        name: `"scipy-openblas32"` or `"numpy"`.
        path: the shared library.
        config: its version and build, in its own words.
        int_bits: 32 or 64, the width of its dimensions and strides.
        private: True when nobody else uses this copy; it then runs on the calling thread alone.
        addresses: of `cblas_sgemm` and so on, as in `FUNCTIONS`.
    """

    name: str
    path: str
    config: str
    int_bits: int
    private: bool
    addresses: dict[str, int]

    def table(self) -> Any:
        """A new `void *[5]` for `tg_init`: the four functions, then `int_bits` as a number."""
        values = [*(self.addresses[name] for name in FUNCTIONS), self.int_bits]
        return ffi.new("void *[]", [ffi.cast("void *", value) for value in values])


_lock = threading.Lock()
_result: list[Blas | None] = []


def find() -> Blas | None:
    """The BLAS of this process, or None where there is none. The same object each time."""
    with _lock:
        if not _result:
            _result.append(_own_copy() or _numpy_copy())
        return _result[0]


def empty_table() -> Any:
    """The table for `tg_init` without a BLAS: all zero, so kernels use their own loops."""
    return ffi.new("void *[]", len(FUNCTIONS) + 1)


def _own_copy() -> Blas | None:
    try:
        import scipy_openblas32
    except ImportError:
        return None
    pattern = os.path.join(scipy_openblas32.get_lib_dir(), "libscipy_openblas*")
    for path in sorted(glob.glob(pattern)):
        with threads.prepare_environment(OPENBLAS_NUM_THREADS="1"):
            found = _load(
                "scipy-openblas32", path, "scipy_cblas_{}", "scipy_openblas_get_config", 32
            )
        if found is not None:
            _libraries[path].scipy_openblas_set_num_threads(1)
            return found
    return None


def _numpy_copy() -> Blas | None:
    import numpy

    home = os.path.dirname(numpy.__file__)
    folders = (os.path.join(os.path.dirname(home), "numpy.libs"), os.path.join(home, ".dylibs"))
    for folder in folders:
        for path in sorted(glob.glob(os.path.join(folder, "lib*openblas64*"))):
            for prefix in ("scipy_", ""):
                config = f"{prefix}openblas_get_config64_"
                found = _load("numpy", path, prefix + "cblas_{}64_", config, 64)
                if found is not None:
                    return found
    return None


_libraries: dict[str, Any] = {}


def _load(name: str, path: str, pattern: str, config: str, bits: int) -> Blas | None:
    """Open a library and look its functions up; None where it cannot be opened or lacks one."""
    try:
        library = ffi.dlopen(path, os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_NODELETE", 0))
        addresses = {
            f: int(ffi.cast("uintptr_t", ffi.addressof(library, pattern.format(f))))
            for f in FUNCTIONS
        }
        words = ffi.string(getattr(library, config)()).decode("ascii", "replace")
    except (OSError, AttributeError, ffi.error):
        return None
    _libraries[path] = library
    return Blas(name, path, " ".join(words.split()), bits, bits == 32, addresses)
