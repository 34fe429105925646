"""From CUDA source to a cubin: memory cache, disk cache, compiler.

`cubin(source, arch, label=...)` is the one entry point. Entries lie beside those of C kernels, under
the SHA-256 of source, compiler, flags and architecture; they are checked when they are read, by the
cache for damage and here for another architecture. Start reading at `cubin`.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from tracegrad.runtime import cache, kernels
from tracegrad.runtime.cuda import compilers
from tracegrad.runtime.cuda.compilers import PRODUCT, SOURCE, Compiler

_CUDA_MACHINE = 190  # e_machine of an ELF file for NVIDIA's GPUs
_OLD_ABI = 7  # up to it the architecture is in the lowest byte of e_flags, then in the next one


@dataclass(frozen=True)
class Cubin:
    """Machine code for a GPU.

    Attributes:
        key: 64 hexadecimal digits.
        image: the bytes of the file.
        path: the file.
        origin: "memory", "disk" or "built".
        compile_ms: what the compiler took, this time; 0 unless built.
    """

    key: str
    image: bytes
    path: Path
    origin: str
    compile_ms: float


_known: dict[str, Cubin] = {}
_flights: dict[str, threading.Lock] = {}
_lock = threading.Lock()


def cubin(source: str, arch: str, *, label: str, listing: str | None = None) -> Cubin:
    """The cubin of a source: from memory, else from disk, else by compiling it.

    Args:
        source: CUDA without comments.
        arch: such as "sm_90".
        label: the user's name for it, kept beside the entry; not in the key.
        listing: a copy with comments for reading, kept as `listing.cu`; not in the key.
    Raises:
        CompilerNotFound: there is no compiler.
        CompileError: the compiler refused the source; the text has its command, its first words
            and the path of the source, which is kept.
    """
    compiler = compilers.find()
    ingredients = {"source": source, **compiler.ingredients(arch)}
    key = cache.make_key(ingredients)
    known = _known.get(key)
    if known is not None:
        return replace(known, origin="memory", compile_ms=0.0)
    with _lock:
        flight = _flights.setdefault(key, threading.Lock())
    with flight:
        if key in _known:
            return replace(_known[key], origin="memory", compile_ms=0.0)
        found = _from_disk(key, arch)
        if found is None:
            found = _build(key, source, arch, compiler, ingredients, label, listing)
        _known[key] = found
    return found


def forget() -> None:
    """Empty the memory cache: the next `cubin` reads the disk (for tests)."""
    with _lock:
        _known.clear()
        _flights.clear()


def architecture(image: bytes) -> str | None:
    """What a cubin was compiled for; None where the bytes are no cubin of NVIDIA's.

    Example:
        >>> architecture(b"text") is None
        True
    """
    if len(image) < 52 or image[:4] != b"\x7fELF":
        return None
    (machine,) = struct.unpack_from("<H", image, 18)
    (flags,) = struct.unpack_from("<I", image, 48)
    if machine != _CUDA_MACHINE:
        return None
    return f"sm_{(flags if image[8] <= _OLD_ABI else flags >> 8) & 0xFF}"


def _from_disk(key: str, arch: str) -> Cubin | None:
    entry = cache.find(key)
    if entry is None:
        return None
    try:
        image = entry.library.read_bytes()
    except OSError:  # it was pruned just now
        return None
    found = architecture(image)
    if entry.meta.get("arch") != arch or (found is not None and found != arch):
        cache.discard(key, f"it is for {found or entry.meta.get('arch')}, not for {arch}")
        return None
    return Cubin(key, image, entry.library, "disk", 0.0)


def _build(
    key: str, source: str, arch: str, compiler: Compiler, ingredients: dict[str, str], label: str,
    listing: str | None,
) -> Cubin:  # fmt: skip
    why = {name: text for name, text in ingredients.items() if name != "source"}
    why["source"] = f"{len(source)} characters, SHA-256 {cache.make_key({'source': source})}"

    def make(build: Path) -> dict[str, object]:
        (build / SOURCE).write_text(source, encoding="utf-8")
        if listing is not None:
            (build / "listing.cu").write_text(listing, encoding="utf-8")
        elapsed = compiler.compile(build, arch)
        meta: dict[str, object] = {"label": label, "command": compiler.command(arch)}
        return meta | {"compile_ms": elapsed, "why": why, "source": SOURCE, "arch": arch}

    def opened(entry: cache.Entry) -> Cubin:
        image = entry.library.read_bytes()
        return Cubin(key, image, entry.library, "built", entry.compile_ms)

    return kernels.built_once(key, lambda: _from_disk(key, arch), make, opened, SOURCE, PRODUCT)
