"""The disk cache: what is in a key, damaged entries, texts, pruning, the command line's functions."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_source import launch, source

from tracegrad.ir.errors import ParameterError
from tracegrad.runtime import cache, folder, inventory, kernels, toolchain
from tracegrad.runtime.folder import CacheWarning


def test_key_changes_with_each_ingredient() -> None:
    tool = toolchain.find()
    variants = [
        tool,
        replace(tool, command=("/other/gcc",)),
        replace(tool, version="gcc 99"),
        replace(tool, target="riscv64-linux-gnu"),
        replace(tool, flags=(*tool.flags, "-O1")),
        replace(tool, cpu="another"),
        replace(tool, libc="glibc 9.9"),
    ]
    keys = {cache.make_key({"source": "a", **t.ingredients()}) for t in variants}
    keys.add(cache.make_key({"source": "b", **tool.ingredients()}))
    keys.add(cache.make_key({"source": "a", **tool.ingredients(("-g",))}))
    assert len(keys) == len(variants) + 2


def test_key_changes_with_the_abi(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernels.key_of(source(2))
    monkeypatch.setattr(toolchain, "ABI_VERSION", toolchain.ABI_VERSION + 1)
    assert kernels.key_of(source(2)) != before


def test_key_does_not_depend_on_label_or_listing() -> None:
    first = kernels.load(source(2), label="f")
    second = kernels.load(source(2), label="g", listing="// other words")
    assert first.key == second.key
    assert (first.origin, second.origin) == ("built", "memory")


def test_texts_that_only_together_are_equal_have_different_keys() -> None:
    assert cache.make_key({"a": "xy", "b": "z"}) != cache.make_key({"a": "x", "b": "yz"})


def replace_library(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Put a new file in place: this process has mapped the old one."""
    (library,) = path.glob("*.so")
    data = library.read_bytes()
    library.unlink()
    library.write_bytes(change(data))


def truncate(path: Path) -> None:
    replace_library(path, lambda data: data[: len(data) // 2])


def flip_a_bit(path: Path) -> None:
    middle = 5000
    replace_library(
        path, lambda data: data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    )


def empty_library(path: Path) -> None:
    replace_library(path, lambda data: b"")


def remove_library(path: Path) -> None:
    next(path.glob("*.so")).unlink()


def remove_meta(path: Path) -> None:
    (path / "meta.json").unlink()


def garble_meta(path: Path) -> None:
    (path / "meta.json").write_text('{"key": ')


def meta_is_a_list(path: Path) -> None:
    (path / "meta.json").write_text("[]")


def library_is_a_folder(path: Path) -> None:
    (library,) = path.glob("*.so")
    library.unlink()
    library.mkdir()


DAMAGES = (
    truncate,
    flip_a_bit,
    empty_library,
    remove_library,
    remove_meta,
    garble_meta,
    meta_is_a_list,
    library_is_a_folder,
)


def load_and_count_warnings(text: str) -> tuple[kernels.LoadedKernel, list[str]]:
    kernels.unload_all()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kernel = kernels.load(text, label="f")
    ours = [w for w in seen if w.category is CacheWarning]
    assert all(w.filename == __file__ for w in ours)  # the line of the user
    return kernel, [str(w.message) for w in ours]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_rebuilt_with_one_warning(damage: Callable[[Path], None]) -> None:
    kernel = kernels.load(source(3), label="f")
    damage(kernel.path.parent)
    again, told = load_and_count_warnings(source(3))
    assert again.origin == "built"
    assert launch(again) == [3, 6, 9, 12]
    assert len(told) == 1
    assert "is damaged" in told[0] and "[cache-damaged]" in told[0] and again.key in told[0]
    healthy, told = load_and_count_warnings(source(3))
    assert (healthy.origin, told) == ("disk", [])


def test_library_of_another_key_is_rebuilt_although_its_checksum_fits() -> None:
    wrong = kernels.load(source(5), label="f")
    right = kernels.load(source(7), label="f")
    meta = json.loads((right.path.parent / "meta.json").read_text())
    other = json.loads((wrong.path.parent / "meta.json").read_text())
    meta.update(so_bytes=other["so_bytes"], so_sha256=other["so_sha256"])
    meta["library"] = "kernel-of-another-key.so"
    right.path.unlink()
    right.path.with_name(meta["library"]).write_bytes(wrong.path.read_bytes())
    (right.path.parent / "meta.json").write_text(json.dumps(meta))
    again, told = load_and_count_warnings(source(7))
    assert again.origin == "built"
    assert launch(again) == [7, 14, 21, 28]
    assert len(told) == 1 and "says that its key is" in told[0]


def test_text_comes_back_exactly() -> None:
    text = "a\r\nb\n\n\u00e9 \u2211\n"
    cache.put_text("source", "k", text)
    assert cache.get_text("source", "k") == text
    assert cache.get_text("source", "other") is None
    assert cache.get_text("elsewhere", "k") is None


def test_damaged_text_counts_as_absent_with_one_warning(cache_dir: Path) -> None:
    cache.put_text("source", "k", "int x;" * 100)
    (path,) = (p for p, _ in folder.files_below(cache_dir / "v1" / "text" / "source"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(CacheWarning, match="cached text .* is damaged"):
        assert cache.get_text("source", "k") is None
    cache.put_text("source", "k", "int y;")
    assert cache.get_text("source", "k") == "int y;"


def test_text_of_another_key_is_not_believed(cache_dir: Path) -> None:
    cache.put_text("source", "a", "text of a")
    (path,) = (p for p, _ in folder.files_below(cache_dir / "v1" / "text" / "source"))
    cache.put_text("source", "b", "text of b")
    other = next(
        p for p, _ in folder.files_below(cache_dir / "v1" / "text" / "source") if p != path
    )
    other.write_bytes(path.read_bytes())
    with pytest.warns(CacheWarning, match="damaged"):
        assert cache.get_text("source", "b") is None


def test_put_text_refuses_a_namespace_that_is_a_path() -> None:
    with pytest.raises(ParameterError, match="namespace must be an identifier"):
        cache.put_text("../up", "k", "text")


def publish_old(factor: int, age_s: float) -> kernels.LoadedKernel:
    kernel = kernels.load(source(factor), label=f"f{factor}")
    then = time.time() - age_s
    os.utime(kernel.path.parent, (then, then))
    return kernel


def test_prune_removes_least_recently_used_first_and_spares_what_is_in_use() -> None:
    oldest, middle, newest = (publish_old(f, age) for f, age in ((2, 900), (3, 600), (4, 300)))
    cache.forget()
    kernels.unload_all()
    in_use = kernels.load(source(2), label="f2")
    assert in_use.origin == "disk"
    os.utime(in_use.path.parent, (1, 1))
    size = inventory.match(middle.key).size
    target = cache.total_size() - size * 9 // 10
    assert cache.prune(target * 5 // 4) == size
    left = {entry.key for entry in inventory.entries()}
    assert oldest.key in left and middle.key not in left and newest.key in left
    cache.prune(0)
    assert {entry.key for entry in inventory.entries()} == {oldest.key}
    assert launch(in_use) == [2, 4, 6, 8]


def test_cache_stays_below_its_size_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_SIZE", "60K")
    for factor in range(2, 8):
        kernels.load(source(factor), label="f")
        kernels.unload_all()
        cache.forget()
    assert 0 < len(inventory.entries()) < 6
    assert cache.total_size() <= 60 * 1024


@pytest.mark.parametrize(
    ("text", "size"), [("", 1 << 30), ("5000", 5000), ("2G", 2 << 30), ("1.5m", 3 << 19)]
)
def test_size_limit_is_read(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_SIZE", text)
    assert cache.size_limit() == size


def test_size_limit_refuses_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_SIZE", "plenty")
    with pytest.raises(ParameterError, match="TRACEGRAD_CACHE_SIZE must be a number of bytes"):
        cache.size_limit()


def test_prune_removes_what_a_killed_process_left() -> None:
    root = folder.current().root
    abandoned = folder.temporary_folder(root, "build-")
    (abandoned / "kernel.c").write_text("x" * 1000)
    os.utime(abandoned, (1, 1))
    recent = folder.temporary_folder(root, "build-")
    assert cache.prune() == 1000
    assert not abandoned.exists() and recent.exists()


def test_clear_leaves_loaded_kernels_working() -> None:
    kernel = kernels.load(source(6), label="f")
    assert inventory.clear() > 0
    assert inventory.entries() == [] and cache.total_size() == 0
    assert launch(kernel) == [6, 12, 18, 24]
    kernels.unload_all()
    assert kernels.load(source(6), label="f").origin == "built"


def test_why_names_every_ingredient() -> None:
    kernel = kernels.load(source(2), label="energy")
    text = inventory.why(kernel.key[:10])
    tool = toolchain.find()
    for expected in (kernel.key, "energy", tool.version, "-ffp-contract=off", tool.cpu, tool.libc):
        assert expected in text


def test_match_refuses_unknown_and_ambiguous_prefixes() -> None:
    for factor in (2, 3):
        kernels.load(source(factor), label="f")
    with pytest.raises(ParameterError, match="no entry in .* starts with 'zz'"):
        inventory.match("zz")
    with pytest.raises(ParameterError, match="2 entries"):
        inventory.match("")
