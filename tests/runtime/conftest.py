"""Every test of the runtime has a cache folder of its own and no memory of earlier tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracegrad.runtime import cache, folder, history, kernels, toolchain
from tracegrad.runtime.cuda import compilers, cubins


def fresh() -> None:
    """Forget everything that a new process would not know."""
    kernels.unload_all()
    toolchain.forget()
    folder.forget_stores()
    folder.forget_warnings()
    history.clear_history()
    cache.forget()
    cubins.forget()
    compilers.forget()


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of this test alone (the probe of the compiler is run anew in it)."""
    path = tmp_path / "cache"
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(path))
    monkeypatch.delenv("TRACEGRAD_CACHE_SIZE", raising=False)
    fresh()
    yield path
    fresh()


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Start a Python process on a program text; variables are added to its environment."""

    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]

    def start(text: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(text)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
