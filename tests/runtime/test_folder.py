"""Folders that cannot be used: someone else's, read-only, full, not a folder at all."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from pathlib import Path

import pytest
from kernel_source import launch, source

from tracegrad.ir.errors import CompileError, ParameterError
from tracegrad.runtime import cache, folder, inventory, kernels
from tracegrad.runtime.folder import CacheWarning


def load_twice() -> tuple[list[kernels.LoadedKernel], list[str]]:
    """Load two kernels, one of them again as after a memory loss; the cache warnings seen."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = [kernels.load(source(f), label="f") for f in (2, 3)]
        kernels.unload_all()
        found.append(kernels.load(source(2), label="f"))
    return found, [str(w.message) for w in seen if w.category is CacheWarning]


def test_folder_is_private(cache_dir: Path) -> None:
    kernel = kernels.load(source(2), label="f")
    for path in (cache_dir / "v1", kernel.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_open_folder_of_ours_is_closed_to_others(cache_dir: Path) -> None:
    (cache_dir / "v1").mkdir(parents=True)
    os.chmod(cache_dir / "v1", 0o777)
    kernels.load(source(2), label="f")
    assert stat.S_IMODE((cache_dir / "v1").stat().st_mode) == 0o700
    assert stat.S_IMODE(cache_dir.stat().st_mode) != 0o700  # the user's own folder is left alone


def test_a_file_in_place_of_the_folder_works_and_warns_once(cache_dir: Path) -> None:
    cache_dir.write_text("not a folder")
    found, told = load_twice()
    assert [k.origin for k in found] == ["built", "built", "disk"]
    assert launch(found[1]) == [3, 6, 9, 12]
    assert len(told) == 1
    assert "cannot be written" in told[0] and "TRACEGRAD_CACHE_DIR" in told[0]
    assert cache_dir.read_text() == "not a folder"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_read_only_or_full_folder_works_and_warns_once(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    known = kernels.load(source(5), label="f")
    kernels.unload_all()
    original = folder.temporary_folder

    def refuse(root: Path, prefix: str) -> Path:
        if root == cache_dir / "v1":
            raise OSError(code, os.strerror(code), str(root))
        return original(root, prefix)

    monkeypatch.setattr(folder, "temporary_folder", refuse)
    found, told = load_twice()
    assert [k.origin for k in found] == ["built", "built", "disk"]
    assert launch(found[0]) == [2, 4, 6, 8]
    assert len(told) == 1 and os.strerror(code) in told[0]
    assert all(cache_dir not in k.path.parents for k in found)
    again = kernels.load(source(5), label="f")  # what the folder holds is still used
    assert again.origin == "disk" and again.path == known.path


def test_disk_that_fills_up_while_compiling(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.load(source(9), label="f")
    script = tmp_path / "gcc"
    script.write_text(
        "#!/bin/sh\ncase $PWD in */cache/v1/*) "
        "echo 'kernel.s: final close failed: No space left on device'; exit 1;; esac\n"
        'exec gcc "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    found, told = load_twice()
    assert [k.origin for k in found] == ["built", "built", "disk"]
    assert len(told) == 1 and "No space left on device" in told[0]


def test_no_folder_at_all_is_a_compile_error(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.load(source(2), label="f")

    def refuse(root: Path, prefix: str) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(root))

    monkeypatch.setattr(folder, "temporary_folder", refuse)
    with pytest.warns(CacheWarning), pytest.raises(CompileError, match="no folder to compile in"):
        kernels.load(source(3), label="f")
    cache.put_text("source", "k", "a memo that nobody needs")  # does not raise
    assert cache.get_text("source", "k") is None


def test_folder_of_another_user_is_refused(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = kernels.load(source(2), label="f")
    kernels.unload_all()
    folder.forget_stores()
    ours = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: ours + 1)
        found, told = load_twice()
        with pytest.raises(ParameterError, match="is not cleared: it belongs to user id"):
            inventory.clear()
    assert theirs.path.is_file()
    assert found[0].origin == "built" and found[0].path != theirs.path
    assert launch(found[0]) == [2, 4, 6, 8]
    assert len(told) == 1
    assert f"belongs to user id {ours}" in told[0] and "[cache-owner]" in told[0]


def test_scratch_folder_is_gone_after_the_process(python, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    (tmp_path / "temp").mkdir()
    program = """
        import warnings; warnings.simplefilter("ignore")
        from kernel_source import *
        print(kernels.load(source(2), label="f").path)
    """
    process = python(
        program, TRACEGRAD_CACHE_DIR=str(tmp_path / "file"), TMPDIR=str(tmp_path / "temp")
    )
    out, err = process.communicate(timeout=60)
    assert str(tmp_path / "temp") in out, err
    assert list((tmp_path / "temp").iterdir()) == []
