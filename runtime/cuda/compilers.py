"""What turns CUDA source into a cubin: NVRTC in this process, or nvcc.

`find()` gives the `Compiler` of this process. NVRTC is taken where its library is found, as it needs
a fifth of the time; `$TRACEGRAD_NVCC` asks for nvcc by name. Start reading at `find`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracegrad.ir.errors import CompileError, CompilerNotFound
from tracegrad.runtime import cache, toolchain
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import libraries

SOURCE, PRODUCT = "kernel.cu", "kernel.cubin"
_INSTALL = (
    "Install the CUDA toolkit and put nvcc on PATH, name it in TRACEGRAD_NVCC, set CUDA_HOME, or "
    "`pip install nvidia-cuda-nvrtc`."
)


@dataclass(frozen=True)
class Compiler:
    """A compiler for CUDA.

    Attributes:
        kind: "nvrtc" or "nvcc".
        path: the library or the program.
        version: in its own words.
    """

    kind: str
    path: str
    version: str

    def flags(self, arch: str) -> tuple[str, ...]:
        """What it is told beside the source. A product and a sum are rounded each, as on the CPU."""
        if self.kind == "nvcc":
            return ("-cubin", f"-arch={arch}", "-fmad=false", "-O3")
        return (f"--gpu-architecture={arch}", "--fmad=false")

    def ingredients(self, arch: str) -> dict[str, str]:
        """The part of a cache key that does not depend on the source."""
        return {
            "compiler": f"{self.kind} {self.version}",
            "flags": " ".join(self.flags(arch)),
            "arch": arch,
        }

    def command(self, arch: str) -> str:
        """How it is called, as one would type it beside the source."""
        words = (self.path, *self.flags(arch), SOURCE, "-o", PRODUCT)
        if self.kind == "nvcc":
            return shlex.join(words)
        return f"NVRTC ({self.path}) with {' '.join(self.flags(arch))}"

    def compile(self, where: Path, arch: str) -> float:
        """Make `where/kernel.cubin` of `where/kernel.cu`; gives the milliseconds.

        Raises:
            CompileError: with the command and the compiler's first words; the caller adds the file.
            OSError: the disk is full.
        """
        if self.kind == "nvcc":
            words = (self.path, *self.flags(arch), SOURCE, "-o", PRODUCT)
            code, text, elapsed = toolchain.run_command(words, where)
        else:
            code, text, elapsed = _run_nvrtc(self.path, self.flags(arch), where)
        if code == 0 and (where / PRODUCT).is_file():
            return elapsed
        if "No space left on device" in text or "Disk quota exceeded" in text:
            raise OSError(28, "No space left on device", str(where))
        command = self.command(arch)
        (where / "errors.txt").write_text(f"{command}\n\n{text}", encoding="utf-8")
        status = "" if code == -1 else f" (exit status {code})"
        raise CompileError(
            f"the CUDA compiler failed{status}:\n{toolchain.first_error(text)}\nCommand: {command}"
        )


_lock = threading.Lock()
_found: dict[tuple[str, ...], Compiler | str] = {}
_VARIABLES = ("TRACEGRAD_NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "TRACEGRAD_CACHE_DIR")


def find() -> Compiler:
    """The CUDA compiler of this process.

    Raises:
        CompilerNotFound: there is none; with what was looked for, and the remedy.
    """
    state = tuple(os.environ.get(name, "") for name in _VARIABLES)
    with _lock:
        if state not in _found:
            _found[state] = _search()
        found = _found[state]
    if isinstance(found, str):
        raise CompilerNotFound(f"{found}. {_INSTALL}")
    return found


def forget() -> None:
    """Search afresh at the next `find` (for tests)."""
    with _lock:
        _found.clear()
    libraries.forget()


def _search() -> Compiler | str:
    named = os.environ.get("TRACEGRAD_NVCC", "")
    if not named:
        nvrtc = _nvrtc_version()
        if nvrtc is not None:
            return nvrtc
    path = libraries.find_nvcc()
    if path is None:
        if named:
            return f"TRACEGRAD_NVCC names {named}, which cannot be run"
        return "no CUDA compiler was found: neither the library libnvrtc nor nvcc"
    version = _nvcc_version(path)
    return Compiler("nvcc", path, version) if version else f"{path} --version cannot be run"


def _nvcc_version(path: str) -> str:
    """What `nvcc --version` says. It is asked again in each process where nvcc is a script."""
    info = os.stat(path)
    with open(path, "rb") as file:
        script = file.read(2) == b"#!"
    memo = json.dumps([os.path.realpath(path), info.st_mtime_ns, info.st_size])
    known = None if script else cache.get_text("nvcc", memo)
    if known is not None:
        return known
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    text = " ".join(done.stdout.split())
    if done.returncode or not text:
        return ""
    if not script:
        cache.put_text("nvcc", memo, text)
    return text


# --- NVRTC ----------------------------------------------------------------------------------------


def _nvrtc() -> Any:
    """The library; its built-in headers must be there for it to see. None where there is none."""
    return libraries.open_library("libnvrtc.so", ("libnvrtc-builtins.so.*",))


def _nvrtc_version() -> Compiler | None:
    path, library = libraries.find_library("libnvrtc.so"), _nvrtc()
    if path is None or library is None:
        return None
    major, minor = ffi.new("int *"), ffi.new("int *")
    if library.nvrtcVersion(major, minor):
        return None
    size = os.path.getsize(path) if os.path.exists(path) else 0  # tells patch releases apart
    return Compiler("nvrtc", path, f"{major[0]}.{minor[0]} {size}")


def _run_nvrtc(path: str, flags: Sequence[str], where: Path) -> tuple[int, str, float]:
    """As `toolchain.run_command`: a status, what it said, milliseconds."""
    import time

    library = _nvrtc()
    source = (where / SOURCE).read_bytes()
    start = time.perf_counter()
    program = ffi.new("void **")
    nothing = ffi.NULL
    code = library.nvrtcCreateProgram(program, source, SOURCE.encode(), 0, nothing, nothing)
    if code:
        return code, f"error: nvrtcCreateProgram gives {code}", 0.0
    try:
        words = [ffi.new("char[]", flag.encode()) for flag in flags]
        code = library.nvrtcCompileProgram(program[0], len(words), words)
        log = _nvrtc_text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program[0])
        if code == 0:
            cubin = _nvrtc_text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program[0])
            (where / PRODUCT).write_bytes(cubin)
    finally:
        library.nvrtcDestroyProgram(program)
    text = log.rstrip(b"\0").decode("utf-8", "replace")
    return code, text, (time.perf_counter() - start) * 1e3


def _nvrtc_text(ask_size: Any, get: Any, program: Any) -> bytes:
    size = ffi.new("size_t *")
    ask_size(program, size)
    data = ffi.new("char[]", max(1, size[0]))
    get(program, data)
    return bytes(ffi.buffer(data, size[0]))
