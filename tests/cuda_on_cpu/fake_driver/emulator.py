"""A machine with CUDA for the tests: libcuda.so.1, libcublas.so.13 and an nvcc that use the CPU.

`build(folder)` makes all three: the driver from `fake_libcuda.c`, with a stub that fails for each
function that pycuda wants beside those, and an nvcc that compiles with g++ and `cuda_on_cpu.h`.
`environment(folder)` is what a process needs to find them; the loader reads it at the start, so tests
run in a process of their own. By hand: `python emulator.py FOLDER`, then set what it prints.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parent / "cuda_on_cpu.h"
FLAGS = (
    "-x", "c++", "-std=c++17", "-O2", "-march=native", "-fno-strict-aliasing", "-fPIC", "-shared",
    "-fvisibility=hidden", "-fno-exceptions", "-ffp-contract=off", "-w",
)  # fmt: skip
EXPORT = 'extern "C" __attribute__((visibility("default")))'
SHARED = r"\bextern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w:\s]+?)\s*(\w+)\s*\[\s*\]\s*;"
KERNEL = r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\("


def missing() -> str:
    """Why there can be no emulated device here; empty where there can."""
    if sys.platform != "linux":
        return "the emulated driver needs Linux"
    for program in ("gcc", "g++", "nm"):
        if shutil.which(program) is None:
            return f"the emulated driver needs {program}"
    return ""


def has_driver() -> bool:
    """Whether the loader finds a real driver on this machine."""
    probe = "import ctypes; ctypes.CDLL('libcuda.so.1')"
    environ = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    done = subprocess.run([sys.executable, "-c", probe], env=environ, capture_output=True)
    return done.returncode == 0


def host_source(source: str) -> str:
    """CUDA -> C++ for the host: the two edits that macros cannot make. Line numbers are kept."""
    text = re.sub(SHARED, r"TGCPU_EXTERN_SHARED(\1, \2);", source)
    lines = [f"{EXPORT} const char* tgcpu_last_error();", '#line 1 "kernel.cu"', text]
    for name in re.findall(KERNEL, source):
        shape = "const unsigned*, const unsigned*, size_t"
        lines.append(f"{EXPORT} int {name}__launch({shape}, void**);")
        lines.append(f"{EXPORT} int {name}__launch_packed({shape}, char*, size_t);")
        lines.append(f"TGCPU_EXPORT({name})")
    return "\n".join(lines) + "\n"


def compile_host(source: str, target: Path) -> str:
    """Compile CUDA for the host, or find it compiled; what the compiler said against it."""
    text = host_source(source)
    key = hashlib.sha256("\0".join([text, HEADER.read_text(), *FLAGS]).encode()).hexdigest()
    kept = Path(os.environ["FAKE_CUDA_FOLDER"], f"{key[:24]}.so")
    if not kept.exists():
        part = kept.with_suffix(f".{os.getpid()}")
        command = ["g++", *FLAGS, "-include", str(HEADER), "-", "-o", str(part)]
        done = subprocess.run(command, input=text, text=True, capture_output=True)
        if done.returncode:
            return done.stderr
        part.replace(kept)
    shutil.copyfile(kept, target)
    return ""


def wanted_symbols() -> set[str]:
    """Functions of the driver that pycuda must find."""
    found = importlib.util.find_spec("pycuda")
    if found is None or found.origin is None:
        return set()
    (extension,) = Path(found.origin).parent.glob("_driver*.so")
    command = ["nm", "-D", "--undefined-only", str(extension)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r" U (cu[A-Z]\w+)", text))


def build(folder: Path) -> None:
    """Make the library and the compiler in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = (HERE / "fake_libcuda.c").read_text()
    have = set(re.findall(r"^R (cu\w+)\(", source, re.MULTILINE))
    have |= {f"cuMemsetD{bits}{end}" for bits in (8, 16, 32) for end in ("_v2", "Async")}
    stubs = "\n".join(f"UNUSED({name})" for name in sorted(wanted_symbols() - have))
    command = ["gcc", "-O1", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-"]
    command += ["-o", str(folder / "libcuda.so.1"), "-ldl", "-lpthread"]
    subprocess.run(command, input=f"{source}\n{stubs}\n", text=True, check=True)
    command = ["gcc", "-O1", "-w", "-shared", "-fPIC", "-Wl,-soname,libcublas.so.13"]
    command += [str(HERE / "fake_libcublas.c"), "-o", str(folder / "libcublas.so.13")]
    subprocess.run([*command, str(folder / "libcuda.so.1")], check=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" nvcc "$@"\n')
    nvcc.chmod(0o755)


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to find the emulated device."""
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "PATH": f"{folder}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join(p for p in paths if p),
        "TRACEGRAD_NVCC": str(folder / "nvcc"),
        "FAKE_CUDA_FOLDER": str(folder),
    }


def nvcc(arguments: list[str]) -> int:
    """`nvcc -cubin ... kernel.cu -o kernel.cubin`, for the host."""
    if "--version" in arguments:
        print("nvcc for the CPU,", hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16])
        return 0
    source = Path(next(a for a in arguments if a.endswith(".cu")))
    target = source.with_suffix(".cubin")
    if "-o" in arguments:
        target = Path(arguments[arguments.index("-o") + 1])
    problem = compile_host(source.read_text(), target)
    sys.stderr.write(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    if sys.argv[1] == "nvcc":
        sys.exit(nvcc(sys.argv[2:]))
    build(Path(sys.argv[1]).resolve())
    for name, value in environment(Path(sys.argv[1]).resolve()).items():
        print(f"export {name}={value}")
