"""The disk cache of compiled kernels, and a small store of texts beside it.

One entry is a folder `kernels/ab/<key>/` with `kernel.c`, a shared object and `meta.json` (for CUDA
`kernel.cu` and a cubin); the key is the SHA-256 of everything that decides the machine code
(`make_key`). Entries are built in a private folder and appear by one rename, so a reader sees a whole
entry or none. The length and the SHA-256 of the shared object are compared before it is loaded: a cut
or altered file is never mapped.
Nothing is pickled. Texts (`get_text`, `put_text`) are single files that carry their own SHA-256.

Note [Names of libraries]
The dynamic loader takes a path that it has open already for the same library, whatever the file now
holds. So every build gives its shared object a name of its own, which `meta.json` records; else an
entry that was found wrong after loading could not be replaced within the process.

Start reading at `find` and `publish`; `prune` bounds the size, `inventory.py` shows what there is.
`prune`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracegrad.ir.errors import ParameterError
from tracegrad.runtime import folder
from tracegrad.runtime.folder import CacheWarning

DEFAULT_SIZE = 1 << 30
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True)
class Entry:
    """One kernel on disk.

    Attributes:
        key: 64 hexadecimal digits.
        path: the folder of the entry.
        meta: what `meta.json` holds: created, label, command, compile_ms, so_bytes, so_sha256, why.
    """

    key: str
    path: Path
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """The C or CUDA file."""
        return self.path / str(self.meta.get("source", "kernel.c"))

    @property
    def compile_ms(self) -> float:
        """How long compiling took."""
        return float(str(self.meta["compile_ms"]))

    @property
    def library(self) -> Path:
        """The shared object. See Note [Names of libraries]."""
        return self.path / str(self.meta.get("library", "kernel.so"))

    @property
    def size(self) -> int:
        """Bytes of all files of the entry."""
        return sum(info.st_size for _, info in folder.files_below(self.path))

    @property
    def used(self) -> float:
        """Seconds since the epoch of the last use (0 when the entry has gone)."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0


def make_key(ingredients: Mapping[str, str]) -> str:
    """SHA-256 of named texts; every one of them changes the key.

    Args:
        ingredients: such as `{"source": ..., "compiler": ..., "flags": ...}`; order has no effect.
    Returns:
        64 hexadecimal digits, the same in every process.
    """
    return hashlib.sha256(json.dumps(dict(ingredients), sort_keys=True).encode()).hexdigest()


# --- entries --------------------------------------------------------------------------------------

_in_use: set[str] = set()
_lock = threading.Lock()
_estimate: dict[Path, int] = {}


def find(key: str) -> Entry | None:
    """The whole entry of a key, or None. A damaged one is removed with one warning."""
    for root in folder.current().read_roots:
        path = _entry_path(root, key)
        try:
            meta = json.loads((path / "meta.json").read_bytes())
            problem = _damage(path, meta, key)
        except FileNotFoundError:
            if not path.is_dir():
                continue
            problem = "a file is missing"
        except (OSError, ValueError) as error:
            problem = f"meta.json cannot be read ({error})"
        if not problem:
            with contextlib.suppress(OSError):  # a read-only folder keeps its old time of use
                os.utime(path)
            _mark_used(key)
            return Entry(key, path, meta)
        discard(key, problem)
    return None


def _damage(path: Path, meta: object, key: str) -> str:
    """What is wrong with an entry, in words; empty when it is whole."""
    if not isinstance(meta, dict) or meta.get("key") != key:
        return "meta.json belongs to another entry"
    data = Entry(key, path, meta).library.read_bytes()
    if len(data) != meta.get("so_bytes"):
        return f"the shared object has {len(data)} bytes, not {meta.get('so_bytes')}"
    if hashlib.sha256(data).hexdigest() != meta.get("so_sha256"):
        return "the shared object has changed since it was built"
    return ""


def discard(key: str, problem: str) -> None:
    """Remove a damaged entry and say so once; the caller builds it anew."""
    store = folder.current()
    for root in store.read_roots:
        path = _entry_path(root, key)
        if not path.is_dir():
            continue
        folder.warn_once(
            "cache-damaged",
            key,
            f"cache entry {path} is damaged ({problem}); it is built again.",
            CacheWarning,
        )
        try:
            folder.remove_atomically(path, root)
        except OSError as error:
            store.demote(error)


def publish(
    build: Path, root: Path, key: str, meta: Mapping[str, object], product: str = "kernel.so"
) -> Entry:
    """Turn a private build folder with a source and what was made of it into the entry of `key`.

    Where another process published the same key meanwhile, its entry is used and ours dropped.

    Args:
        build: folder made by `folder.temporary_folder(root, ...)`; gone afterwards.
        root: the store root that the build folder stands below.
        key: from `make_key`.
        meta: what to remember; the size and digest of the product are added.
        product: the file that the compiler made.
    Raises:
        OSError: the folder is full or read-only.
    """
    library = f"kernel-{os.urandom(4).hex()}{Path(product).suffix}"
    os.rename(build / product, build / library)
    data = (build / library).read_bytes()
    full: dict[str, object] = dict(meta)
    full.update(
        key=key, library=library, so_bytes=len(data), so_sha256=hashlib.sha256(data).hexdigest()
    )
    full["created"] = time.time()
    (build / "meta.json").write_text(json.dumps(full, indent=1), encoding="utf-8")
    path = _entry_path(root, key)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(8):
        try:
            os.rename(build, path)
            break
        except OSError:
            if not path.is_dir():
                raise
            winner = find(key)
            if winner is not None:
                shutil.rmtree(build, ignore_errors=True)
                return winner
    else:
        raise OSError(f"cache entry {path} keeps changing while it is being written")
    _mark_used(key)
    entry = Entry(key, path, full)
    _grow(root, entry.size)
    return entry


def forget_size() -> None:
    """Measure the folder anew at the next write."""
    with _lock:
        _estimate.clear()


def forget() -> None:
    """Forget which entries this process uses and how large the folder is (for tests)."""
    with _lock:
        _in_use.clear()
        _estimate.clear()


def _entry_path(root: Path, key: str) -> Path:
    return root / "kernels" / key[:2] / key


def _mark_used(key: str) -> None:
    with _lock:
        _in_use.add(key)


# --- texts ----------------------------------------------------------------------------------------


def _text_path(root: Path, namespace: str, key: str) -> Path:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return root / "text" / namespace / digest[:2] / digest


def get_text(namespace: str, key: str) -> str | None:
    """The text stored under a key, or None. A damaged file is removed and counts as absent."""
    for root in folder.current().read_roots:
        path = _text_path(root, namespace, key)
        try:
            head, _, body = path.read_bytes().partition(b"\n")
        except OSError:
            continue
        if head.decode("ascii", "replace") == _text_head(key, body):
            with contextlib.suppress(OSError):  # a read-only folder keeps its old time of use
                os.utime(path)
            return body.decode("utf-8")
        folder.warn_once(
            "cache-damaged", str(path), f"cached text {path} is damaged; removed.", CacheWarning
        )
        with contextlib.suppress(OSError):  # where it cannot be removed it stays ignored
            path.unlink()
    return None


def put_text(namespace: str, key: str, text: str) -> None:
    """Store a text. A cache that cannot be written warns once and keeps it for this process only.

    Args:
        namespace: a short name usable as a folder name, such as `"source"`.
        key: any text; only its SHA-256 is used.
        text: what `get_text` gives back, exactly.
    """
    if not namespace.isidentifier():
        raise ParameterError(f"put_text: namespace must be an identifier; got {namespace!r}")
    body = text.encode("utf-8")
    data = _text_head(key, body).encode() + b"\n" + body

    def action(root: Path) -> Path:
        folder.write_atomically(_text_path(root, namespace, key), data, root)
        return root

    try:
        root = folder.current().write(action)
    except OSError:
        return  # nothing can be written, of which `Store.demote` has warned; this is only a memo
    _grow(root, len(data))


def _text_head(key: str, body: bytes) -> str:
    whole = hashlib.sha256(hashlib.sha256(key.encode()).digest() + body).hexdigest()
    return f"tracegrad text {whole}"


# --- size -----------------------------------------------------------------------------------------


def size_limit() -> int:
    """Bytes the cache may hold: `$TRACEGRAD_CACHE_SIZE` (plain or with K, M, G), else 1 GiB."""
    text = os.environ.get("TRACEGRAD_CACHE_SIZE", "").strip().upper().removesuffix("B")
    if not text:
        return DEFAULT_SIZE
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
    digits = text if scale == 1 else text[:-1]
    try:
        return int(float(digits) * scale)
    except ValueError:
        raise ParameterError(
            f"TRACEGRAD_CACHE_SIZE must be a number of bytes such as 500M or 2G; got {text!r}"
        ) from None


def total_size(root: Path | None = None) -> int:
    """Bytes in the cache folder now."""
    base = folder.current().root if root is None else root
    return sum(info.st_size for _, info in folder.files_below(base))


def _grow(root: Path, size: int) -> None:
    """Keep a running estimate of the size, and prune when it passes the limit."""
    with _lock:
        known = root in _estimate
        if known:
            _estimate[root] += size
    if not known:
        total = total_size(root)
        with _lock:
            _estimate[root] = total
    if _estimate[root] > size_limit():
        prune()


def prune(limit: int | None = None) -> int:
    """Delete least recently used files until the cache is below 80 % of its limit.

    Entries that this process has loaded stay. Files that a killed process left behind go after a
    day.

    Args:
        limit: bytes; `size_limit()` when None. 0 deletes all that is not in use.
    Returns:
        Bytes freed.
    """
    root = folder.current().write_root
    freed = _remove_abandoned(root)
    bound = size_limit() if limit is None else limit
    target = bound * 4 // 5
    total = total_size(root)
    if total > bound:
        for _, size, path in sorted(_candidates(root)):
            if total <= target:
                break
            if path.is_dir():
                folder.remove_atomically(path, root)
            else:
                path.unlink(missing_ok=True)
            total -= size
            freed += size
    with _lock:
        _estimate[root] = total
    return freed


def _candidates(root: Path) -> Iterator[tuple[float, int, Path]]:
    with _lock:
        used = set(_in_use)
    for entry in entries_below(root):
        if entry.key not in used:
            yield entry.used, entry.size, entry.path
    for path, info in folder.files_below(root / "text"):
        yield info.st_mtime, info.st_size, path
    for path in children(root / "failed"):
        yield path.stat().st_mtime, sum(i.st_size for _, i in folder.files_below(path)), path


def _remove_abandoned(root: Path) -> int:
    freed = 0
    for path in (*children(root / "tmp"), *children(root / "locks")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < _ABANDONED_S:
                continue
            if path.is_dir():
                freed += sum(info.st_size for _, info in folder.files_below(path))
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    return freed


def children(path: Path) -> tuple[Path, ...]:
    """What a folder holds; nothing where there is no such folder."""
    return tuple(path.iterdir()) if path.is_dir() else ()


def entries_below(root: Path) -> Iterator[Entry]:
    """Every entry of a store root, whole or damaged."""
    for shelf in children(root / "kernels"):
        for path in children(shelf):
            try:
                meta = json.loads((path / "meta.json").read_bytes())
            except (OSError, ValueError):
                meta = {}  # listed with its size, so that it can be seen and pruned
            yield Entry(path.name, path, meta)
