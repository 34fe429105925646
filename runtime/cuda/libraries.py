"""Where NVIDIA's libraries and compiler are: the loader's path, the toolkit, wheels from PyPI.

Nothing here loads the driver. Start reading at `open_library`.
"""

from __future__ import annotations

import functools
import glob
import os
import shutil
import site
import sys
from pathlib import Path
from typing import Any

from tracegrad.runtime._abi import ffi


@functools.cache
def toolkit_folders() -> tuple[Path, ...]:
    """Toolkits, best first: `$CUDA_HOME`, `$CUDA_PATH`, the one of the nvcc on PATH, the usual place."""
    named = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")]
    nvcc = shutil.which("nvcc")
    beside = [str(Path(os.path.realpath(nvcc)).parent.parent)] if nvcc else []
    found = [Path(text) for text in (*named, *beside, "/usr/local/cuda") if text]
    return tuple(dict.fromkeys(p for p in found if p.is_dir()))


def library_folders() -> tuple[Path, ...]:
    """Folders that may hold NVIDIA's libraries beside those that the loader looks in."""
    found = [
        p / lib for p in toolkit_folders() for lib in ("lib64", "lib", "targets/x86_64-linux/lib")
    ]
    packages = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    for package in dict.fromkeys(packages):
        for pattern in ("nvidia/*/lib", "nvidia/*/lib/x86_64-linux"):
            found += map(Path, sorted(glob.glob(os.path.join(package, pattern)), reverse=True))
    return tuple(dict.fromkeys(p for p in found if p.is_dir()))


def find_library(name: str, versions: tuple[int, ...] = (13, 12)) -> str | None:
    """The path or the plain name under which a library can be opened.

    Args:
        name: such as "libnvrtc.so"; versions: of it, best first.
    """
    names = [f"{name}.{version}" for version in versions]
    for candidate in names:
        if _opens(candidate) is not None:
            return candidate
    for folder in library_folders():
        for candidate in names:
            path = str(folder / candidate)
            if os.path.exists(path):
                return path
    return None


def open_library(name: str, before: tuple[str, ...] = ()) -> Any:
    """Open a library where it is found; None where there is none, or it cannot be loaded.

    Args:
        before: patterns of files beside it to open first, for all to see.
    """
    path = find_library(name)
    if path is None:
        return None
    for pattern in before:
        beside = glob.glob(os.path.join(os.path.dirname(path), pattern)) if "/" in path else []
        for other in sorted(beside):
            _opens(other, os.RTLD_NOW | os.RTLD_GLOBAL)
    return _opens(path)


@functools.cache
def _opens(path: str, flags: int = os.RTLD_NOW | os.RTLD_LOCAL) -> Any:
    try:
        return ffi.dlopen(path, flags | getattr(os, "RTLD_NODELETE", 0))
    except OSError:
        return None


def forget() -> None:
    """Look afresh (for tests)."""
    toolkit_folders.cache_clear()
    _opens.cache_clear()


def find_nvcc() -> str | None:
    """nvcc: `$TRACEGRAD_NVCC`, else that of `$CUDA_HOME`, else on PATH, else in the usual place."""
    named = os.environ.get("TRACEGRAD_NVCC", "")
    if named:
        return shutil.which(named)
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    for home in (*homes, "", "/usr/local/cuda"):
        path = shutil.which(os.path.join(home, "bin", "nvcc")) if home else shutil.which("nvcc")
        if path:
            return path
    return None
