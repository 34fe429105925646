"""Missing and failing compilers, bad cache folders, broken entries, wrong code: still right."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
from beside import assert_equal, assert_same, fresh

import tracegrad as tg
from tracegrad.codegen import unit
from tracegrad.tracer.verification import VerificationWarning

pytestmark = pytest.mark.usefixtures("new_process")


def work(x: Any) -> Any:
    return (tg.sin(x) * 2 + x).sum()


def leaf() -> Any:
    return tg.randn(5, requires_grad=True)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("how", ["CC", "PATH"])
def test_without_a_compiler_it_runs_eagerly(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if how == "CC":
        monkeypatch.setenv("CC", "/nonexistent/cc")
    else:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    fresh()
    with pytest.warns(Warning) as seen:
        f = assert_same(work, (leaf(),), times=3)
    ours = [w for w in seen if w.category.__name__ == "NoCompilerWarning"]
    assert len(ours) == 1
    assert "compiler" in str(ours[0].message)
    assert f.cache_info().traces == 0


def test_a_failing_compiler_is_shown_and_the_result_is_eager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    real = shutil.which("gcc") or shutil.which("cc")
    # works while it is probed, fails on the first real unit
    text = f'case "$*" in *kernel*|*tg_*) ;; esac\nif [ -e {tmp_path}/broken ]; then\n' \
           f'  echo "unit.c:7:1: error: no such luck" >&2; exit 1\nfi\nexec {real} "$@"'  # fmt: skip
    monkeypatch.setenv("CC", script(tmp_path / "cc", text))
    fresh()
    tg.compile(lambda x: x + 1)(tg.ones(2))  # the probe passes
    (tmp_path / "broken").touch()
    f = tg.compile(work)
    x = leaf()
    with pytest.warns(tg.EagerWarning, match=r"(?s)runs eagerly:.*no such luck") as seen:
        got = f(x)
    message = str(seen[0].message)
    assert str(tmp_path / "cc") in message
    kept = [w.strip(".,;:()") for w in message.split() if w.strip(".,;:()").endswith(".c")]
    assert any(Path(p).exists() for p in kept), message
    assert_equal(got, work(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(f(x), work(x))


def test_a_compiler_that_fails_for_the_backward_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    real = shutil.which("gcc") or shutil.which("cc")
    text = f'if [ -e {tmp_path}/broken ]; then echo "x.c:1:1: error: out of luck" >&2; exit 1; fi\n' \
           f'exec {real} "$@"'  # fmt: skip
    monkeypatch.setenv("CC", script(tmp_path / "cc", text))
    fresh()
    f = tg.compile(work)
    f(leaf())
    (tmp_path / "broken").touch()
    x = leaf()
    with pytest.warns(tg.EagerWarning, match=r"(?s)backward of work runs eagerly.*out of luck"):
        f(x).backward()
    assert_equal(x.grad, (2 * tg.cos(x) + 1).detach())
    y = leaf()
    f(y).backward()
    assert_equal(y.grad, (2 * tg.cos(y) + 1).detach())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(closed / "cache"))
    fresh()
    with pytest.warns(Warning, match="(?i)cache"):
        assert_same(work, (leaf(),), traces=1)


def test_a_cache_folder_that_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "file"))
    fresh()
    with pytest.warns(Warning, match="(?i)cache"):
        assert_same(work, (leaf(),), traces=1)


def replace(path: Path, content: bytes) -> None:
    """Another file under the same name: this process may have the old one loaded."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_entry_is_built_again(damage: bytes | None, tmp_path: Path) -> None:
    assert_same(work, (leaf(),), traces=1)
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert files
    for path in files:
        if damage is None:
            replace(path, path.read_bytes()[: path.stat().st_size // 2])
        elif path.suffix in (".so", ".json", ".c"):
            replace(path, damage)
    fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(work, (leaf(),), traces=1)


def wrong(text: str) -> str:
    """Miscompile: sin becomes cos."""
    return text.replace("sinf(", "cosf(").replace("sin(", "cos(")


@pytest.fixture
def miscompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    real = unit.without_comments
    monkeypatch.setattr(unit, "without_comments", lambda source: wrong(real(source)))


def test_wrong_code_is_caught_and_named(miscompiled: None) -> None:
    f = tg.compile(work)
    x = leaf()
    with pytest.warns(VerificationWarning) as seen:
        got = f(x)
    message = str(seen[0].message)
    assert "first operation that differs is sin" in message
    assert "test_faults.py:" in message
    assert "tg.sin(x) * 2" in message
    assert_equal(got, work(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(f(x), work(x))
    assert "compiled result was wrong" in f.explain()


def test_wrong_code_of_a_backward_is_caught(miscompiled: None) -> None:
    def g(x: Any) -> Any:
        return (tg.cos(x) * 2).sum()  # right forward, wrong backward: sin is miscompiled

    f = tg.compile(g)
    x = leaf()
    f(x)
    with pytest.warns(VerificationWarning, match="backward of g"):
        f(x).backward()
    assert_equal(x.grad, (-2 * tg.sin(x)).detach())
    y = leaf()
    f(y).backward()
    assert_equal(y.grad, (-2 * tg.sin(y)).detach())


def test_verify_always_catches_what_goes_wrong_later() -> None:
    f = tg.compile(work, verify="always")
    x = leaf()
    f(x)
    trace = f._order[0]
    real = trace.executable.call

    def broken(*addresses: int) -> Any:
        return tuple(a + 1 for a in real(*addresses))

    trace.launch.__globals__["forward"] = broken
    with pytest.warns(VerificationWarning):
        assert_equal(f(x), work(x))


def test_verify_off_does_not_compare(miscompiled: None) -> None:
    f = tg.compile(work, verify="off")
    x = leaf()
    f(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert abs(f(x).item() - work(x).item()) > 1e-3


def test_a_fault_of_the_compiler_itself_is_reported_and_costs_no_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise AssertionError("no such plan")

    monkeypatch.setattr("tracegrad.runtime.executable.plan_unit", broken)
    monkeypatch.setattr("tracegrad.runtime.cache.get_text", lambda *args: None)
    f = tg.compile(lambda x: x * 3.25)
    with pytest.warns(
        tg.EagerWarning, match=r"tracegrad failed on it \(AssertionError.*no such plan"
    ):
        assert f(tg.tensor([2.0])).tolist() == [6.5]
    assert f(tg.tensor([4.0])).tolist() == [13.0]
    assert f.cache_info().eager_calls == 1
