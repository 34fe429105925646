"""What the disk cache holds, for the command line: list, find by prefix, explain, clear.

Start reading at `entries`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tracegrad.ir.errors import ParameterError
from tracegrad.runtime import cache, folder
from tracegrad.runtime.cache import Entry


def entries() -> list[Entry]:
    """All entries of the cache folder, last used first."""
    return sorted(cache.entries_below(folder.current().root), key=lambda e: e.used, reverse=True)


def path() -> Path:
    """The folder that holds the cache."""
    return folder.current().root


def clear() -> int:
    """Delete every file of the cache folder; returns the bytes freed. Loaded kernels go on.

    Raises:
        ParameterError: the folder belongs to another user.
    """
    store = folder.current()
    if not store.readable:
        raise ParameterError(f"cache: {store.root} is not cleared: {store.problem}")
    root = store.root
    freed = cache.total_size(root)
    for child in cache.children(root):
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    cache.forget_size()
    return freed


def match(prefix: str) -> Entry:
    """The one entry whose key starts with `prefix`.

    Raises:
        ParameterError: none does, or several do.
    """
    found = [entry for entry in entries() if entry.key.startswith(prefix)]
    if len(found) != 1:
        what = "no entry" if not found else f"{len(found)} entries"
        raise ParameterError(
            f"cache: {what} in {path()} with a key that starts with {prefix!r}; "
            "`python -m tracegrad cache ls` lists the keys"
        )
    return found[0]


def why(prefix: str) -> str:
    """Everything the key of an entry was made from, one ingredient a line."""
    entry = match(prefix)
    ingredients = entry.meta.get("why")
    lines = [f"key      {entry.key}", f"label    {entry.meta.get('label', '?')}"]
    if isinstance(ingredients, dict):
        lines += [f"{name:8} {value}" for name, value in ingredients.items()]
    return "\n".join(
        [*lines, f"folder   {entry.path}", f"command  {entry.meta.get('command', '?')}"]
    )
