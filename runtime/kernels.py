"""From C source to a function that can be called: memory cache, disk cache, compiler, loader.

`load(source, label=...)` is the one entry point. What generated C must define (ABI 1):

    int tg_run(void **args);                /* 0, or 1 + the index of a predicate that differs */
    void tg_init(void **blas);              /* optional: sgemm, dgemm, sgemv, dgemv, int bits */
    void tg_init_threads(const int *count); /* optional: num_threads(*count) at parallel loops */

The two `tg_init` functions are called once, after loading and before the first `tg_run`; the BLAS
is loaded only for a kernel that has `tg_init`. Its pointers are NULL where there is no BLAS; the
last slot is the width of BLAS integers, 32 or 64 (0 without one). `tg_key` is added here and must
not be defined.

Note [Filling arguments], nanoseconds measured on a 2-core x86-64 machine, for two arrays
    args[i] = ffi.from_buffer(array), each        108   C-contiguous arrays only
    args[i] = pointer kept as cdata, each          28
    memoryview over a NumPy uintp array, each      22
    run(args), args ready                         122
    run((p, q)), a tuple of kept cdata            180   a new argument list per call: thread safe
    args[0] = ..., args[1] = ..., run(args)       350   with from_buffer
    run((from_buffer(x), from_buffer(y)))         366   thread safe
    array.ctypes.data                             745
So a launcher keeps pointers (`address_of`) of what it owns and passes a tuple to `run`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tracegrad.ir.errors import CompileError
from tracegrad.runtime import blas, cache, folder, history, threads, toolchain
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.runtime.history import KernelRecord

DEBUG_FLAGS = ("-g", "-fno-omit-frame-pointer")
LOCK_TIMEOUT_S = 120.0
Pointer = Any


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel ready to be called.

    Attributes:
        run: `tg_run`: takes a `void *[]` (`new_args`) or a tuple of pointers, returns an int. The
        GIL
            is released meanwhile. Calls may overlap.
        key: 64 hexadecimal digits.
        path: the shared object.
        source: the C text.
        origin: `"memory"`, `"disk"` or `"built"`.
        compile_ms: what the compiler took, this time; 0 unless built.
        record: its line in `kernel_history()`; launchers count `record.launches`.
        library: keeps the shared object loaded.
    """

    run: Callable[[Any], int]
    key: str
    path: Path
    source: str
    origin: str
    compile_ms: float
    record: KernelRecord
    library: Any = field(repr=False)


# --- arguments ------------------------------------------------------------------------------------


def pointer(array: Any) -> int:
    """The address of an array's first element, for any strides; on its device, if it has one."""
    if array.__class__ is DeviceArray:
        return int(array.address)
    try:
        return int(ffi.cast("uintptr_t", ffi.from_buffer(array)))
    except (ValueError, BufferError):
        return int(array.ctypes.data)


def address_of(array: np.ndarray[Any, Any]) -> Pointer:
    """The same as a `void *` for `args[i] = ...`. It does not keep the array alive."""
    return ffi.cast("void *", pointer(array))


def new_args(count: int) -> Any:
    """A `void *[count]` of NULLs. One per call or per thread: kernels read it while they run."""
    return ffi.new("void *[]", count)


# --- loading --------------------------------------------------------------------------------------

_loaded: dict[str, LoadedKernel] = {}
_flights: dict[str, threading.Lock] = {}
_lock = threading.Lock()


def key_of(source: str, *, debug: bool = False) -> str:
    """The cache key that `load` would use for a source.

    Raises:
        CompilerNotFound: there is no compiler, and no cache made by one.
    """
    return cache.make_key(_ingredients(source, toolchain.find(), debug))


def _ingredients(source: str, tool: toolchain.Toolchain, debug: bool) -> dict[str, str]:
    return {"source": source, **tool.ingredients(DEBUG_FLAGS if debug else ())}


def load(
    source: str,
    *,
    label: str,
    debug: bool = False,
    listing: str | None = None,
    codegen_ms: float = 0.0,
    inputs: int = 0,
    outputs: int = 0,
    ops: int = 0,
    bytes: int = 0,
    listed: bool = True,
) -> LoadedKernel:
    """Load a kernel: from memory, else from disk, else by compiling it.

    Safe from any number of threads and processes: a key is built once, the others wait for it.

    Args:
        source: C text as described at the top of this file.
        label: the user's name for it, kept beside the entry and in the history, not in the key.
        debug: build with debug information (a key of its own).
        listing: a copy with comments for reading, kept as `listing.c`; not in the key.
        codegen_ms, inputs, outputs, ops, bytes: for the history.
        listed: False for a helper that is no kernel of the user's and has no place in the history.
    Raises:
        CompilerNotFound: there is no compiler and the cache does not hold this kernel.
        CompileError: the compiler refused the source; the text has its command, its first words
            and the path of the source, which is kept.
    """
    start = time.perf_counter()
    tool = toolchain.find()
    ingredients = _ingredients(source, tool, debug)
    key = cache.make_key(ingredients)

    def finish(kernel: LoadedKernel, origin: str) -> LoadedKernel:
        spent = 0.0 if origin != "built" else kernel.compile_ms
        elapsed = (time.perf_counter() - start) * 1e3
        line = KernelRecord(
            key, label, origin, codegen_ms, spent, elapsed, bytes, inputs, outputs, ops
        )
        line.source = str(kernel.path.with_name("kernel.c"))
        if listed:
            history.record(line)
        return replace(kernel, origin=origin, compile_ms=spent, record=line)

    kernel = _loaded.get(key)
    if kernel is not None:
        return finish(kernel, "memory")
    with _lock:
        flight = _flights.setdefault(key, threading.Lock())
    with flight:
        kernel = _loaded.get(key)
        if kernel is not None:
            return finish(kernel, "memory")
        kernel = _from_disk(key, source)
        if kernel is None:
            if not tool.present:
                raise toolchain.not_found(tool)
            kernel = _build(key, source, tool, ingredients, label, debug, listing)
        _loaded[key] = kernel
    return finish(kernel, kernel.origin)


def unload_all() -> None:
    """Empty the memory cache: the next `load` reads the disk. Kernels in use keep working."""
    with _lock:
        _loaded.clear()
        _flights.clear()


def _from_disk(key: str, source: str) -> LoadedKernel | None:
    entry = cache.find(key)
    if entry is None:
        return None
    try:
        return _open(entry.library, key, source, "disk", 0.0)
    except OSError as error:
        cache.discard(key, str(error))
        return None


def _open(path: Path, key: str, source: str, origin: str, compile_ms: float) -> LoadedKernel:
    """dlopen a shared object, compare its key, hand in BLAS and thread count.

    Raises:
        OSError: it cannot be loaded, or it is not the object of this key.
    """
    # Idle OpenMP threads may still run when Python closes the library at exit: never unmap it.
    flags = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_NODELETE", 0)
    with threads.prepare_environment(**threads.openmp_settings()):
        library = ffi.dlopen(str(path), flags)
    try:
        found = ffi.string(library.tg_key).decode("ascii", "replace")
        run = library.tg_run
    except (AttributeError, ffi.error) as error:
        raise OSError(f"{path.name} lacks a symbol: {error}") from None
    if found != key:
        raise OSError(f"{path.name} says that its key is {found[:12]}..., not {key[:12]}...")
    if _exports(library, "tg_init_threads"):
        library.tg_init_threads(threads.cell())
    if _exports(library, "tg_init"):
        backend = blas.find()
        library.tg_init(blas.empty_table() if backend is None else backend.table())
    empty = KernelRecord(key, "", origin)
    return LoadedKernel(run, key, path, source, origin, compile_ms, empty, library)


def _exports(library: Any, name: str) -> bool:
    """Whether a library defines an optional function; cffi has two ways of saying no."""
    try:
        getattr(library, name)
    except (AttributeError, ffi.error):
        return False
    return True


# --- building -------------------------------------------------------------------------------------


def _build(
    key: str,
    source: str,
    tool: toolchain.Toolchain,
    ingredients: dict[str, str],
    label: str,
    debug: bool,
    listing: str | None,
) -> LoadedKernel:
    why = {name: text for name, text in ingredients.items() if name != "source"}
    why["source"] = f"{len(source)} characters, SHA-256 {cache.make_key({'source': source})}"

    def make(build: Path) -> dict[str, object]:
        extra = (*DEBUG_FLAGS, f"-fdebug-prefix-map={build}=.") if debug else ()
        _write_source(build, key, source, listing)
        command, elapsed = toolchain.compile_source(tool, build, extra)
        return {"label": label, "command": command, "compile_ms": elapsed, "why": why}

    return built_once(
        key,
        lambda: _from_disk(key, source),
        make,
        lambda entry: _open_built(entry, key, source, entry.compile_ms),
    )


Made = TypeVar("Made")


def built_once(
    key: str,
    present: Callable[[], Made | None],
    make: Callable[[Path], dict[str, object]],
    opened: Callable[[cache.Entry], Made],
    source: str = "kernel.c",
    product: str = "kernel.so",
) -> Made:
    """Build an entry of the cache, in one process at a time, or find that another one has built it.

    Args:
        present: finds the entry on disk.
        make: writes and compiles in a folder of its own, and returns what the entry says of that.
        opened: reads the new entry.
        source, product: names of the files; the source of a failed compilation is kept.
    Raises:
        CompileError: as `make` raises it, with the path of the source; or no folder can be written.
    """
    store = folder.current()

    def action(root: Path) -> Made:
        with key_lock(root, key):
            found = present()  # another process was faster
            if found is not None:
                return found
            build = folder.temporary_folder(root, "build-")
            try:
                entry = cache.publish(build, root, key, make(build), product)
            except CompileError as error:
                kept = keep_failed(build, root, key, source)
                raise type(error)(f"{error}\nSource:  {kept}") from None
            finally:
                shutil.rmtree(build, ignore_errors=True)
            return opened(entry)

    try:
        return store.write(action)
    except OSError as error:
        raise CompileError(
            f"no folder to compile in: {error}. Free space in {store.root} and in the temporary "
            "folder, or set TRACEGRAD_CACHE_DIR and TMPDIR to folders that can be written."
        ) from None


def build_apart(source: str, where: Path) -> LoadedKernel:
    """Compile and load a source in a folder of the caller, past all caches (for `doctor`)."""
    tool = toolchain.find()
    if not tool.present:
        raise toolchain.not_found(tool)
    key = key_of(source)
    _write_source(where, key, source, None)
    _, elapsed = toolchain.compile_source(tool, where)
    return _open(where / "kernel.so", key, source, "built", elapsed)


def _open_built(entry: cache.Entry, key: str, source: str, elapsed: float) -> LoadedKernel:
    try:
        return _open(entry.library, key, source, "built", elapsed)
    except OSError as error:
        raise CompileError(
            f"the compiled kernel cannot be loaded: {error}\n"
            f"Command: {entry.meta.get('command')}\nSource:  {entry.source}"
        ) from None


def _write_source(build: Path, key: str, source: str, listing: str | None) -> None:
    text = f'{source.rstrip()}\n\nconst char tg_key[] = "{key}";\n'
    (build / "kernel.c").write_text(text, encoding="utf-8")
    if listing is not None:
        (build / "listing.c").write_text(listing, encoding="utf-8")


def keep_failed(build: Path, root: Path, key: str, source: str = "kernel.c") -> Path:
    """Move a build that failed to `failed/`, so that its source can be read; return that file."""
    target = root / "failed" / key[:16]
    target.parent.mkdir(mode=0o700, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    os.rename(build, target)
    return target / source


@contextlib.contextmanager
def key_lock(root: Path, key: str) -> Iterator[None]:
    """Hold the lock of a key among processes. It saves work, and has no part in the result."""
    import filelock

    guard: Any = None
    path = root / "locks" / f"{key}.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        guard = filelock.FileLock(path, timeout=LOCK_TIMEOUT_S)
        guard.acquire()
    except (filelock.Timeout, NotImplementedError):
        guard = None  # a process that hangs, or a file system without locks: build beside it
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        guard = None
    try:
        yield
    finally:
        if guard is not None:
            guard.release()
            path.unlink(missing_ok=True)
