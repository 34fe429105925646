"""The compiler: found, missing, failing, slow; which runs a second process saves."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from pathlib import Path

import pytest
from kernel_source import launch, source

from tracegrad.ir.errors import CompileError, CompilerNotFound, ParameterError
from tracegrad.runtime import folder, kernels, toolchain
from tracegrad.runtime.toolchain import NoCompilerWarning


def script(path: Path, body: str) -> str:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_finds_a_compiler_and_describes_it() -> None:
    tool = toolchain.find()
    assert tool.present and Path(tool.command[0]).is_file()
    assert set(toolchain.REQUIRED_FLAGS) <= set(tool.flags)
    assert tool.version and tool.target


def test_cc_may_have_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = script(tmp_path / "wrap", 'exec "$@"')
    monkeypatch.setenv("CC", f"{wrapper} gcc -DTWICE=2")
    tool = toolchain.find()
    assert tool.command == (wrapper, "gcc", "-DTWICE=2")
    kernel = kernels.load(source(2).replace("FACTOR *", "TWICE *"), label="f")
    assert launch(kernel) == [2, 4, 6, 8]


def test_optional_flags_are_dropped_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'for a in "$@"; do case $a in -fopenmp|-march=*) echo "error: $a"; exit 1;; esac; done'
    monkeypatch.setenv("CC", script(tmp_path / "old", body + '\nexec gcc "$@"'))
    tool = toolchain.find()
    assert not tool.openmp and "-march=native" not in tool.flags and "-pipe" in tool.flags
    assert launch(kernels.load(source(2), label="f")) == [2, 4, 6, 8]


def test_second_process_runs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("")
    monkeypatch.setenv("CC", script(tmp_path / "cc", f'echo "$@" >> {log}\nexec gcc "$@"'))
    first = toolchain.find()
    assert log.read_text().count("probe.c") == 1
    log.write_text("")
    toolchain.forget()
    folder.forget_stores()
    assert toolchain.find() == first
    assert log.read_text() == ""


def test_changed_compiler_is_examined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cc"
    monkeypatch.setenv("CC", script(path, 'exec gcc "$@"'))
    before = kernels.key_of(source(2))
    other = '[ "$1" = --version ] && { echo "newer 1.0"; exit; }\nexec gcc "$@"'
    script(path, other)
    toolchain.forget()
    assert toolchain.find().version == "newer 1.0"
    assert kernels.key_of(source(2)) != before


@pytest.mark.parametrize("how", ["CC", "PATH"])
def test_missing_compiler_warns_once_and_raises(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "CC":
        monkeypatch.setenv("CC", "/nonexistent")
    else:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            with pytest.raises(CompilerNotFound, match="apt install gcc"):
                kernels.load(source(2), label="f")
    (told,) = (w for w in seen if w.category is NoCompilerWarning)
    assert "run eagerly" in str(told.message) and "[no-compiler]" in str(told.message)


def test_cached_kernels_load_after_the_compiler_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.load(source(2), label="f")
    kernels.unload_all()
    monkeypatch.setenv("CC", "/nonexistent")
    with pytest.warns(NoCompilerWarning, match="/nonexistent"):
        kernel = kernels.load(source(2), label="f")
    assert kernel.origin == "disk" and launch(kernel) == [2, 4, 6, 8]
    with pytest.raises(CompilerNotFound, match="not in the cache"):
        kernels.load(source(3), label="f")


def test_compiler_that_cannot_compile_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "cc", "echo 'error: license expired'; exit 3"))
    with pytest.warns(NoCompilerWarning) as seen, pytest.raises(CompilerNotFound) as caught:
        toolchain.find()
    for text in (str(seen[0].message), str(caught.value)):
        told = f"the C compiler {tmp_path}/cc was found but failed the test compile: error: license"
        assert told in text and "-O3" in text and "repair the installation" in text
        assert "no C compiler" not in text and "Install one" not in text


def test_warnings_show_the_line_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    with pytest.warns(NoCompilerWarning) as seen, pytest.raises(CompilerNotFound):
        kernels.load(source(2), label="f")
    assert seen[0].filename == __file__


def test_refused_source_is_kept_and_named() -> None:
    with pytest.raises(CompileError) as caught:
        kernels.load("int tg_run(void **args) { return undeclared; }", label="f")
    text = str(caught.value)
    assert "error: 'undeclared' undeclared" in text.replace("\u2018", "'").replace("\u2019", "'")
    assert toolchain.find().command[0] in text and "-O3" in text
    kept = Path(text.rpartition("Source:")[2].strip())
    assert "return undeclared" in kept.read_text()
    assert "undeclared" in (kept.parent / "errors.txt").read_text()


def test_kept_source_of_a_failure_is_replaced_not_added() -> None:
    bad = "int tg_run(void **args) { return undeclared; }"
    for _ in range(2):
        with pytest.raises(CompileError):
            kernels.load(bad, label="f")
    assert len(list((folder.current().root / "failed").iterdir())) == 1
    assert list((folder.current().root / "tmp").iterdir()) == []


def test_source_without_tg_run_is_refused() -> None:
    with pytest.raises(CompileError, match="lacks a symbol.*tg_run"):
        kernels.load("int other(void) { return 0; }", label="f")


def test_compiler_that_starts_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = '[ -f probe.c ] && exec gcc "$@"\n[ "$1" = --version ] && exit\n'
    body += "echo 'kernel.c:3:1: error: something broke'; exit 9"
    monkeypatch.setenv("CC", script(tmp_path / "cc", body))
    with pytest.raises(CompileError, match=r"(?s)exit status 9.*kernel.c:3:1: error: something"):
        kernels.load(source(2), label="f")


def test_slow_compiler_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = '[ -f probe.c ] && exec gcc "$@"\n'
    body += f"sleep 30 & echo $! > {tmp_path}/child\nwait"
    monkeypatch.setenv("CC", script(tmp_path / "cc", body))
    toolchain.find()
    monkeypatch.setenv("TRACEGRAD_COMPILE_TIMEOUT", "0.5")
    start = time.perf_counter()
    with pytest.raises(CompileError, match="stopped after 0.5 s"):
        kernels.load(source(2), label="f")
    assert time.perf_counter() - start < 10
    stat = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    assert not stat.exists() or stat.read_text().split()[2] in "ZX"


def test_timeout_refuses_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_COMPILE_TIMEOUT", "soon")
    with pytest.raises(ParameterError, match="TRACEGRAD_COMPILE_TIMEOUT"):
        toolchain.compile_timeout()


def test_first_error_prefers_errors_to_notes() -> None:
    text = "k.c: In function 'f':\nk.c:1: warning: odd\nk.c:2: error: bad\n"
    assert toolchain.first_error(text) == "k.c:2: error: bad"
    assert toolchain.first_error("") == "the compiler printed nothing"


def test_kept_command_compiles_the_kept_source_by_hand(tmp_path: Path) -> None:
    kernel = kernels.load(source(4), label="f")
    shutil.copy(kernel.path.with_name("kernel.c"), tmp_path / "kernel.c")
    meta = json.loads(kernel.path.with_name("meta.json").read_text())
    code, text, _ = toolchain.run_command(["sh", "-c", meta["command"]], tmp_path)
    assert code == 0, text
    assert (tmp_path / "kernel.so").read_bytes() == kernel.path.read_bytes()
