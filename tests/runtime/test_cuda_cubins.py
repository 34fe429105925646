"""Cubins: cache, damage, other architectures, errors, and which compiler is taken.

A compiler of shell script stands for nvcc; what needs the real one, or NVRTC, says so.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_units import SCALE

from tracegrad.ir.errors import CompileError, CompilerNotFound
from tracegrad.runtime import cache, inventory
from tracegrad.runtime.cuda import compilers, cubins, libraries
from tracegrad.runtime.folder import CacheWarning

NVCC = libraries.find_nvcc()
NVRTC = libraries.find_library("libnvrtc.so")


def elf(number: int, abi: int = 8) -> bytes:
    """The head of a cubin for an architecture, and nothing in it."""
    head = bytearray(64)
    head[:4] = b"\x7fELF"
    head[8] = abi
    struct.pack_into("<HH", head, 16, 2, 190)
    struct.pack_into("<I", head, 48, number if abi == 7 else number << 8 | 0x6000004)
    return bytes(head)


def script(folder: Path, product: bytes = elf(90), body: str = "", version: str = "V1") -> Path:
    """A stand-in for nvcc: it counts its runs in `runs`, and its product is always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "product").write_bytes(product)
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "stand-in {version}"; exit 0; fi\n'
        f'echo "$@" >> "{folder}/runs"\n{body}\n'
        f'while [ "$1" != -o ]; do shift; done\ncp "{folder}/product" "$2"\n'
    )
    path.chmod(0o755)
    return path


def runs(folder: Path) -> list[str]:
    path = folder / "runs"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in."""
    monkeypatch.setenv("TRACEGRAD_NVCC", str(script(tmp_path / "tool")))
    return tmp_path / "tool"


def get(source: str = SCALE, arch: str = "sm_90") -> cubins.Cubin:
    return cubins.cubin(source, arch, label="f", listing=f"// f\n{source}")


def test_a_cubin_is_built_once_and_then_read(nvcc: Path) -> None:
    first = get()
    assert (first.origin, first.image) == ("built", elf(90))
    assert get().origin == "memory"
    cubins.forget()
    again = get()
    assert (again.origin, again.image, again.key) == ("disk", elf(90), first.key)
    assert runs(nvcc) == ["-cubin -arch=sm_90 -fmad=false -O3 kernel.cu -o kernel.cubin"]


def test_the_entry_can_be_read_and_explained(nvcc: Path) -> None:
    made = get()
    assert made.path.with_name("kernel.cu").read_text() == SCALE
    assert made.path.with_name("listing.cu").read_text() == f"// f\n{SCALE}"
    (entry,) = inventory.entries()
    assert entry.source.read_text() == SCALE
    text = inventory.why(made.key[:8])
    assert "arch     sm_90" in text
    assert "nvcc stand-in V1" in text


def test_source_architecture_and_compiler_decide_the_key(
    nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {get().key, get(SCALE + "\n").key}
    (nvcc / "product").write_bytes(elf(80))
    keys.add(get(arch="sm_80").key)
    other = script(tmp_path / "other", version="V2")
    monkeypatch.setenv("TRACEGRAD_NVCC", str(other))
    keys.add(get().key)
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_entry_is_built_again(nvcc: Path, damage: str) -> None:
    made = get()
    if damage == "gone":
        made.path.unlink()
    else:
        data = made.path.read_bytes()
        made.path.write_bytes(data[:-1] if damage == "cut" else b"x" + data[1:])
    cubins.forget()
    with pytest.warns(CacheWarning, match=r"is damaged .*cache-damaged"):
        again = get()
    assert (again.origin, again.image) == ("built", elf(90))
    assert len(runs(nvcc)) == 2


@pytest.mark.parametrize("abi", [7, 8])
def test_an_entry_for_another_architecture_is_built_again(nvcc: Path, abi: int) -> None:
    (nvcc / "product").write_bytes(elf(80, abi))
    get()  # what the compiler says is believed; the file is looked at when it is read
    (nvcc / "product").write_bytes(elf(90, abi))
    cubins.forget()
    with pytest.warns(CacheWarning, match="it is for sm_80, not for sm_90"):
        again = get()
    assert cubins.architecture(again.image) == "sm_90"


def test_an_error_says_command_and_words_and_keeps_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "echo 'kernel.cu(3): error: identifier \"y\" is undefined'; exit 2"
    monkeypatch.setenv("TRACEGRAD_NVCC", str(script(tmp_path / "tool", body=body)))
    with pytest.raises(CompileError) as caught:
        get("broken")
    text = str(caught.value)
    assert 'exit status 2):\nkernel.cu(3): error: identifier "y" is undefined\nCommand: ' in text
    assert "-cubin -arch=sm_90 -fmad=false -O3 kernel.cu -o kernel.cubin" in text
    kept = Path(text.partition("Source:  ")[2])
    assert kept.name == "kernel.cu"
    assert kept.read_text() == "broken"
    assert kept.with_name("errors.txt").exists()
    with pytest.raises(CompileError):  # nothing of it is taken for a cubin
        get("broken")


def test_a_compiler_that_makes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEGRAD_NVCC", str(script(tmp_path / "tool", body="exit 0")))
    with pytest.raises(CompileError, match="the compiler printed nothing"):
        get()


def test_without_any_compiler_the_error_has_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRACEGRAD_NVCC", raising=False)
    monkeypatch.setattr(libraries, "find_library", lambda *_: None)
    monkeypatch.setattr(libraries, "find_nvcc", lambda: None)
    with pytest.raises(CompilerNotFound, match=r"neither .*libnvrtc nor nvcc.*TRACEGRAD_NVCC"):
        get()


def test_a_named_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_NVCC", "/nowhere/nvcc")
    with pytest.raises(CompilerNotFound, match="TRACEGRAD_NVCC names /nowhere/nvcc"):
        get()


def test_nvcc_is_looked_for_by_name_then_home_then_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRACEGRAD_NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    on_path = script(tmp_path / "path")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    assert libraries.find_nvcc() == str(on_path)
    at_home = script(tmp_path / "home" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert libraries.find_nvcc() == str(at_home)
    named = script(tmp_path / "named")
    monkeypatch.setenv("TRACEGRAD_NVCC", str(named))
    assert libraries.find_nvcc() == str(named)


def test_a_wrapper_that_changes_its_compiler_changes_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec "{tmp_path}/real/nvcc" "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("TRACEGRAD_NVCC", str(wrapper))
    script(tmp_path / "real")
    first = get()
    script(tmp_path / "real", version="V2")
    compilers.forget()
    assert get().key != first.key


def test_two_processes_build_one_entry(nvcc: Path, python: Callable[..., object]) -> None:
    script(nvcc, body="sleep 0.5")
    text = """
        from cuda_units import SCALE
        from tracegrad.runtime.cuda import cubins
        print(cubins.cubin(SCALE, "sm_90", label="f").origin)
    """
    started = [python(text) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].strip() for process in started]  # type: ignore
    assert sorted(said) == ["built", "disk", "disk"]
    assert len(runs(nvcc)) == 1


def test_the_cache_is_bounded_with_cubins_in_it(nvcc: Path) -> None:
    get()
    cache.forget()
    assert cache.prune(0) > 0
    assert not inventory.entries()


@pytest.mark.skipif(NVCC is None, reason="nvcc is not here")
def test_nvcc_makes_a_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_NVCC", str(NVCC))
    made = get()
    assert cubins.architecture(made.image) == "sm_90"
    with pytest.raises(CompileError, match=r'kernel.cu\(1\): error: identifier "y"'):
        get('extern "C" __global__ void f(float *x) { x[0] = y; }')


@pytest.mark.skipif(NVRTC is None, reason="NVRTC is not here")
def test_nvrtc_is_preferred_and_makes_a_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEGRAD_NVCC", raising=False)
    assert compilers.find().kind == "nvrtc"
    assert cubins.architecture(get().image) == "sm_90"
    with pytest.raises(CompileError, match=r'(?s)kernel.cu\(1\): error: identifier "y".*NVRTC'):
        get('extern "C" __global__ void f(float *x) { x[0] = y; }')


def test_nothing_of_this_needs_pycuda() -> None:
    text = """
        import sys
        sys.modules["pycuda"] = None
        from tracegrad.runtime.cuda import cubins, executable, memory
        import tracegrad.cuda
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(text)], check=True)
