"""The C compiler: which one, with which flags, for which processor; and one run of it.

`find()` gives the `Toolchain` of this process. Which optional flags a compiler takes is found by a
real test compile; the answer is kept in the disk cache under the compiler's path, time stamp and
size, so a second process starts no compiler at all. Start reading at `find`, then `compile_source`.

Note [Flags]
`-fno-math-errno -fno-trapping-math -ffp-contract=off` keep IEEE results and still let loops be
vectorised. `-fno-builtin-sinf` and its kin stop gcc from merging sinf and cosf of one argument into
the scalar sincosf, which costs a factor of 20 where libmvec has vector forms of both. `-fwrapv`
makes integers wrap as NumPy's do. No loop is peeled to align its stores, because then the address
of an array would decide which elements are rounded by scalar and which by vector functions.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracegrad.ir.errors import CompileError, CompilerNotFound, ParameterError
from tracegrad.runtime import cache, folder

ABI_VERSION = 1
REQUIRED_FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-builtin-sinf",
    "-fno-builtin-cosf",
    "-fno-builtin-sin",
    "-fno-builtin-cos",
    "-fPIC",
    "-shared",
    "-std=gnu11",
)
OPTIONAL_FLAGS = (
    ("-march=native", "-mcpu=native"),
    ("-fopenmp",),
    ("--param=vect-max-peeling-for-alignment=0",),
    ("-fno-tree-dse",),  # gcc 12.2 with AVX-512 drops stores to arrays of one row that are read
    ("-pipe",),
)
LIBRARIES = ("-lm",)
_PROBE = """\
#include <math.h>
#include <stddef.h>
int tg_run(void **args) {
    float *restrict x = args[0];
    #pragma omp parallel for simd
    for (ptrdiff_t i = 0; i < 64; i++) x[i] = sqrtf(x[i]) + x[i];
    return 0;
}
"""
_INSTALL = (
    "Install one (`apt install gcc`, `dnf install gcc`, `xcode-select --install`, "
    "`conda install c-compiler`) or name it in the environment variable CC."
)
_REPAIR = (
    "Run that command by hand to see all it says, repair the installation, or name another "
    "compiler in the environment variable CC."
)


class NoCompilerWarning(UserWarning):
    """No C compiler was found, so functions run eagerly. Given once per process.

    Silence it with `warnings.simplefilter("ignore", tracegrad.runtime.toolchain.NoCompilerWarning)`
    or by its id `no-compiler`, with which the text ends.
    """


@dataclass(frozen=True)
class Toolchain:
    """A C compiler that passed the test compile.

    Attributes:
        command: the words that start it, such as `("ccache", "gcc")`.
        version: first line of its `--version`.
        target: what it compiles for, such as `x86_64-linux-gnu`.
        flags: all flags, the optional ones that it takes included.
        cpu: name and feature digest of the processor.
        libc: the C library of this process.
        problem: why only kernels from the cache can be had; empty while the compiler is there.
        remedy: what to do about the problem.
    """

    command: tuple[str, ...]
    version: str
    target: str
    flags: tuple[str, ...]
    cpu: str
    libc: str
    problem: str = ""
    remedy: str = ""

    @property
    def present(self) -> bool:
        """False where the compiler has gone and only the kernels it made are left."""
        return not self.problem

    @property
    def openmp(self) -> bool:
        """True when loops can run on several threads."""
        return "-fopenmp" in self.flags

    def ingredients(self, extra: Sequence[str] = ()) -> dict[str, str]:
        """The part of a cache key that does not depend on the source."""
        return {
            "compiler": " ".join((*self.command, self.version, self.target)),
            "flags": " ".join((*self.flags, *extra, *LIBRARIES)),
            "cpu": self.cpu,
            "libc": self.libc,
            "abi": str(ABI_VERSION),
        }


@dataclass(frozen=True)
class _Missing:
    """Why there is no compiler, and what to do about it."""

    problem: str
    remedy: str


# --- finding the compiler -------------------------------------------------------------------------

_lock = threading.Lock()
_found: dict[tuple[str, str, str], Toolchain | _Missing] = {}


def find() -> Toolchain:
    """The compiler of this process: `$CC` (which may have arguments), else gcc, cc or clang.

    Raises:
        CompilerNotFound: there is none, or it fails the test compile. The first time a
            `NoCompilerWarning` says so as well.
    """
    get = os.environ.get
    state = (get("CC", ""), get("PATH", ""), get("TRACEGRAD_CACHE_DIR", ""))
    with _lock:
        if state not in _found:
            _found[state] = _search()
        result = _found[state]
    if isinstance(result, Toolchain):
        if not result.present:
            _warn(
                f"{result.problem}; kernels made earlier by {result.version} are still used",
                result.remedy,
            )
        return result
    _warn(result.problem, result.remedy)
    raise CompilerNotFound(f"{result.problem}. {result.remedy}")


def not_found(tool: Toolchain) -> CompilerNotFound:
    """The error for a kernel that is not in the cache when `tool` is no longer there."""
    return CompilerNotFound(f"{tool.problem}, and this kernel is not in the cache. {tool.remedy}")


def forget() -> None:
    """Search afresh at the next `find` (for tests, and after installing a compiler)."""
    with _lock:
        _found.clear()


def _warn(reason: str, remedy: str) -> None:
    folder.warn_once(
        "no-compiler",
        "",
        f"{reason}: functions that are not in the cache run eagerly. {remedy}",
        NoCompilerWarning,
    )


def _search() -> Toolchain | _Missing:
    """The first compiler that works, else the last one known, else why there is none."""
    absent, broken, named = [], [], bool(os.environ.get("CC", "").strip())
    for command in _candidates():
        path = shutil.which(command[0])
        if path is None:
            where = f"CC names {command[0]}, which is" if named else f"{command[0]} is"
            absent.append(f"{where} not on PATH")
            continue
        result = _examine((path, *command[1:]))
        if isinstance(result, Toolchain):
            return result
        broken.append(result)
    if broken:
        missing = _Missing("; ".join(broken), _REPAIR)
    else:
        missing = _Missing("no C compiler was found (" + "; ".join(absent) + ")", _INSTALL)
    last = cache.get_text("toolchain", "last")
    return missing if last is None else _from_record(last, missing)


def _candidates() -> list[tuple[str, ...]]:
    named = os.environ.get("CC", "").strip()
    if named:
        return [tuple(shlex.split(named))]
    return [("gcc",), ("cc",), ("clang",)]


def _examine(command: tuple[str, ...]) -> Toolchain | str:
    """Identity and working flags of a compiler, from the cache or by running it."""
    memo = json.dumps([_stamp(command), REQUIRED_FLAGS, OPTIONAL_FLAGS, cpu_identity(), _libc()])
    text = cache.get_text("toolchain", memo)
    if text is None:
        result = _run_probe(command)
        if isinstance(result, str):
            return result
        text = json.dumps(result)
        cache.put_text("toolchain", memo, text)
        cache.put_text("toolchain", "last", text)
    return _from_record(text, _Missing("", ""))


def _from_record(text: str, missing: _Missing) -> Toolchain:
    """The toolchain that `_run_probe` described, and why it is there no more."""
    told = json.loads(text)
    command, flags = tuple(told["command"]), tuple(told["flags"])
    return Toolchain(
        command, told["version"], told["target"], flags, cpu_identity(), _libc(),
        missing.problem, missing.remedy,
    )  # fmt: skip


def _stamp(command: tuple[str, ...]) -> list[object]:
    """Path, time stamp and size of every word of a command that is a program or a file."""
    result: list[object] = []
    for word in command:
        path = shutil.which(word)
        if path is None:
            result.append(word)
        else:
            info = os.stat(path)
            result.append([word, os.path.realpath(path), info.st_mtime_ns, info.st_size])
    return result


def _run_probe(command: tuple[str, ...]) -> dict[str, object] | str:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tracegrad-probe-") as scratch:
        source = Path(scratch, "probe.c")
        source.write_text(_PROBE, encoding="utf-8")

        def accepts(flags: Sequence[str]) -> str:
            words = (*command, *flags, "probe.c", "-o", "probe.so", *LIBRARIES)
            code, text, _ = run_command(words, Path(scratch))
            if code == 0:
                return ""
            return (
                f"the C compiler {shlex.join(command)} was found but failed the test compile: "
                f"{first_error(text, 1)} (command: {shlex.join(words)})"
            )

        flags = list(REQUIRED_FLAGS)
        everything = [*flags, *(choices[0] for choices in OPTIONAL_FLAGS)]
        if not accepts(everything):
            flags = everything
        else:
            problem = accepts(flags)
            if problem:
                return problem
            for choices in OPTIONAL_FLAGS:
                flags += next(([c] for c in choices if not accepts([*flags, c])), [])
        version = run_command((*command, "--version"), Path(scratch))[1].strip().splitlines()
        target = run_command((*command, "-dumpmachine"), Path(scratch))[1].strip()
    return {
        "command": list(command),
        "version": version[0] if version else "unknown version",
        "target": target.splitlines()[0] if target else platform.machine(),
        "flags": flags,
    }


# --- the machine ----------------------------------------------------------------------------------


@functools.cache
def cpu_identity() -> str:
    """Model name and a digest of the features: `-march=native` depends on them."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    name, facts = platform.machine(), []
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                field, _, value = line.partition(":")
                if not field.strip():
                    break
                if field.strip() in wanted:
                    facts.append(" ".join(sorted(value.split())))
                elif field.strip() == "model name":
                    name = value.strip()
    except OSError:
        facts = [platform.platform(), platform.processor()]
    return f"{name} {cache.make_key({'facts': repr(facts)})[:16]}"


@functools.cache
def _libc() -> str:
    names = getattr(os, "confstr_names", {})
    text = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in names else None
    return text or f"{sys.platform} {platform.release()}"


# --- one run --------------------------------------------------------------------------------------


def compile_timeout() -> float:
    """Seconds a compiler may take: `$TRACEGRAD_COMPILE_TIMEOUT`, else 300."""
    text = os.environ.get("TRACEGRAD_COMPILE_TIMEOUT", "300")
    try:
        return float(text)
    except ValueError:
        raise ParameterError(
            f"TRACEGRAD_COMPILE_TIMEOUT must be a number of seconds; got {text!r}"
        ) from None


def run_command(command: Sequence[str], where: Path) -> tuple[int, str, float]:
    """Run a compiler in a folder: exit status, all it printed, milliseconds.

    The status is -1 where it could not be started or took longer than `compile_timeout()`; then it
    is stopped with all its children.
    """
    limit = compile_timeout()
    environ = {**os.environ, "LC_ALL": "C", "TMPDIR": str(where)}
    start = time.perf_counter()
    try:
        process = subprocess.Popen(
            command,
            cwd=where,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return -1, f"error: {command[0]} cannot be started: {error.strerror or error}", 0.0
    try:
        output, _ = process.communicate(timeout=limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        output, code = f"error: stopped after {limit:g} s (TRACEGRAD_COMPILE_TIMEOUT)".encode(), -1
    except BaseException:
        process.kill()
        process.wait()
        raise
    return code, output.decode("utf-8", "replace"), (time.perf_counter() - start) * 1e3


def first_error(text: str, lines: int = 3) -> str:
    """The first error lines of a compiler's output, or its first lines where none says `error`."""
    every = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in every if "error" in line.lower() or "undefined" in line.lower()]
    return "\n".join((errors or every)[:lines]) or "the compiler printed nothing"


def compile_source(tool: Toolchain, where: Path, extra: Sequence[str] = ()) -> tuple[str, float]:
    """Compile `where/kernel.c` to `where/kernel.so`.

    Returns:
        The command, as one would type it in that folder, and the milliseconds it took.
    Raises:
        CompileError: with the command and the compiler's first words; the caller adds the file.
        OSError: the disk is full.
    """
    words = (*tool.command, *tool.flags, *extra, "kernel.c", "-o", "kernel.so", *LIBRARIES)
    code, text, elapsed = run_command(words, where)
    command = shlex.join(words)
    if code == 0 and (where / "kernel.so").is_file():
        return command, elapsed
    if "No space left on device" in text or "Disk quota exceeded" in text:
        raise OSError(28, "No space left on device", str(where))
    (where / "errors.txt").write_text(f"{command}\n\n{text}", encoding="utf-8")
    status = "" if code == -1 else f" (exit status {code})"
    raise CompileError(f"the C compiler failed{status}:\n{first_error(text)}\nCommand: {command}")
