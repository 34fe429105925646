"""Where cached files live: the choice of the folder, its trust, and atomic writes.

The folder is `$TRACEGRAD_CACHE_DIR`, else the user cache folder of the platform; inside it
everything stands below one sub-folder of mode 0700 that must belong to the current user. A folder
that cannot be used (someone else's, read-only, full, not a folder) costs one warning; from then on
new files go to a private temporary folder that is removed at exit, and what the cache folder
already holds is still read where that is safe. Start reading at `Store`, then `current`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tracegrad.ir.location import user_stacklevel

LAYOUT = "v1"
T = TypeVar("T")


class CacheWarning(UserWarning):
    """The disk cache cannot be used fully, or an entry of it was damaged. Results are not affected.

    Each text ends with a stable id in brackets (`cache-owner`, `cache-unusable`, `cache-damaged`).
    Silence all with `warnings.simplefilter("ignore", tracegrad.runtime.folder.CacheWarning)`.
    """


_warned: set[str] = set()
_warned_lock = threading.Lock()


def warn_once(identity: str, subject: str, message: str, category: type[Warning]) -> None:
    """Warn with `message [identity]`, once per process for each identity and subject."""
    with _warned_lock:
        mark = f"{identity}:{subject}"
        if mark in _warned:
            return
        _warned.add(mark)
    warnings.warn(f"{message} [{identity}]", category, stacklevel=user_stacklevel())


def forget_warnings() -> None:
    """Let every warning of this module be given again (for tests)."""
    with _warned_lock:
        _warned.clear()


def configured_root() -> Path:
    """The folder the user asked for: `$TRACEGRAD_CACHE_DIR`, else the platform's user cache."""
    chosen = os.environ.get("TRACEGRAD_CACHE_DIR")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    import platformdirs

    return Path(platformdirs.user_cache_dir("tracegrad", appauthor=False))


class Store:
    """One cache folder, and the private temporary folder that stands in where it cannot be written.

    Attributes:
        root: the sub-folder of the configured folder that holds all files.
        readable: files in `root` may be trusted: it belongs to us.
        writable: no write has failed so far.
        problem: why not, in words; empty while all is well.
    """

    def __init__(self, base: Path) -> None:
        self.root = base / LAYOUT
        self.readable = True
        self.writable = True
        self.problem = ""
        self._scratch: Path | None = None
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = self.root.stat()
        except OSError as error:
            self.readable = self.root.is_dir()
            self.demote(error)
            return
        if not _owned(info):
            self.readable = self.writable = False
            self.problem = f"it belongs to user id {info.st_uid}, not to {os.geteuid()}"
            warn_once(
                "cache-owner",
                str(self.root),
                f"cache folder {self.root} is not used: {self.problem}. Kernels are compiled "
                "anew in a private temporary folder. Set TRACEGRAD_CACHE_DIR to a folder of "
                "your own.",
                CacheWarning,
            )
        elif stat.S_IMODE(info.st_mode) & 0o077:
            try:
                os.chmod(self.root, 0o700)
            except OSError as error:
                self.readable = not info.st_mode & 0o022
                self.demote(error)

    def demote(self, error: OSError) -> None:
        """Stop writing to the cache folder: say why, once, and go on in a temporary folder."""
        if not self.writable:
            return
        self.writable = False
        self.problem = error.strerror or str(error)
        warn_once(
            "cache-unusable",
            str(self.root),
            f"cache folder {self.root} cannot be written ({self.problem}). Compiled kernels are "
            "kept in a temporary folder for this process only. Free space there, or set "
            "TRACEGRAD_CACHE_DIR to a folder that can be written.",
            CacheWarning,
        )

    @property
    def scratch(self) -> Path:
        """The private temporary folder of this process, made on first use."""
        with self._lock:
            if self._scratch is None:
                import tempfile

                self._scratch = Path(tempfile.mkdtemp(prefix="tracegrad-"))
                atexit.register(_remove_own, self._scratch, os.getpid())
            return self._scratch

    @property
    def read_roots(self) -> tuple[Path, ...]:
        """Folders to look in, best first."""
        roots = (self.root,) if self.readable else ()
        return roots if self._scratch is None else (*roots, self._scratch)

    @property
    def write_root(self) -> Path:
        """The folder that new files go to."""
        return self.root if self.writable else self.scratch

    def write(self, action: Callable[[Path], T]) -> T:
        """Run `action(folder)` on the cache folder; where it fails, warn and use scratch."""
        if self.writable:
            try:
                return action(self.root)
            except OSError as error:
                self.demote(error)
        return action(self.scratch)


def _owned(info: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or info.st_uid == os.geteuid()


def _remove_own(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


_stores: dict[Path, Store] = {}
_stores_lock = threading.Lock()


def current() -> Store:
    """The store of the folder that is configured now."""
    base = configured_root()
    with _stores_lock:
        store = _stores.get(base)
        if store is None:
            store = _stores[base] = Store(base)
        return store


def forget_stores() -> None:
    """Look at the cache folder afresh at its next use (for tests)."""
    with _stores_lock:
        _stores.clear()


def temporary_folder(root: Path, prefix: str) -> Path:
    """A new private folder below `root/tmp`: same file system, so renames are atomic."""
    import tempfile

    parent = root / "tmp"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def write_atomically(path: Path, data: bytes, root: Path) -> None:
    """Write a file so that readers see all of it or none; the temporary file is below `root`."""
    folder = temporary_folder(root, "file-")
    try:
        part = folder / path.name
        part.write_bytes(data)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_atomically(folder: Path, root: Path) -> None:
    """Move a folder out of sight in one step, then delete it. A folder already gone is fine."""
    bin_ = temporary_folder(root, "bin-")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, bin_ / folder.name)
    shutil.rmtree(bin_, ignore_errors=True)


def files_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file below a folder with its stat; files that vanish meanwhile are skipped."""
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            with contextlib.suppress(OSError):
                yield path, path.stat()
