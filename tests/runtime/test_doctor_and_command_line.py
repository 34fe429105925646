"""`python -m tracegrad`: doctor, cache; the pieces of inspect that need no compiled function."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kernel_source import source

from tracegrad.__main__ import find_function, main, make_argument
from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.runtime import blas, doctor, kernels


def test_doctor_compiles_loads_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "!!" not in text
    for part in ("compiled in", "sin right to", "MiB", "CUDA", "numpy", "processors"):
        assert part in text


def test_doctor_reports_a_missing_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "!!  compiler" in text and "!!  kernel" in text and "apt install gcc" in text


def test_doctor_finds_a_wrong_product(monkeypatch: pytest.MonkeyPatch) -> None:
    real = blas.find()
    assert real is not None

    class Broken:
        def table(self) -> object:
            return blas.empty_table()

    monkeypatch.setattr(blas, "find", Broken)
    good, text = doctor._kernel()
    assert not good and "sgemm through the kernel is off" in text


def test_doctor_reports_a_cache_that_cannot_be_used(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_dir.write_text("")
    main(["doctor"])
    assert "!!  cache" in capsys.readouterr().out


def test_cache_commands(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = kernels.load(source(2), label="energy")
    kernels.load(source(3), label="other")
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(cache_dir / "v1")
    assert main(["cache", "ls"]) == 0
    listed = capsys.readouterr().out
    assert kernel.key[:12] in listed and "energy" in listed and "2 kernels" in listed
    assert main(["cache", "why", kernel.key[:12]]) == 0
    assert "-ffp-contract=off" in capsys.readouterr().out
    assert main(["cache", "prune", "--size", "100"]) == 0
    assert "freed 0.0 MiB" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert main(["cache", "ls"]) == 0
    assert "0 kernels" in capsys.readouterr().out


def test_unknown_key_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "why", "ffff"]) == 2
    assert "no entry" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("nocolon", ParameterError, "expected FILE:FUNCTION"),
        ("missing.py:f", ParameterError, "there is no file"),
        ("{file}:g", ParameterError, "has no 'g'; it has C, f"),
        ("{file}:C", OperandError, "C is a class; name an instance"),
        ("{file}:x", OperandError, "x is a int, not a function"),
    ],
)
def test_inspect_refuses(target: str, error: type[Exception], text: str, tmp_path: Path) -> None:
    file = tmp_path / "inspected_module.py"
    file.write_text("x = 3\nclass C: pass\ndef f(a): return a\n")
    with pytest.raises(error, match=text):
        find_function(target.format(file=file))


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("2.5", 2.5), ("-1e-3", -1e-3)])
def test_numbers_are_arguments(text: str, value: object) -> None:
    assert make_argument(text) == value


@pytest.mark.parametrize("text", ["float31[2]", "abs[3]", "hello", "[1, 2]", "float32[a]"])
def test_other_words_are_not(text: str) -> None:
    with pytest.raises(ParameterError, match="--arg"):
        make_argument(text)


INSPECTED = """
import tracegrad as tg

def energy(x, y, k):
    return (tg.sin(x) * tg.exp(-x * x) * k + y).sum()
"""


def test_inspect_prints_graphs_sources_and_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "inspected_energy.py"
    file.write_text(INSPECTED)
    words = ["inspect", f"{file}:energy", "--arg", "float32[3,4]", "--arg", "float32[4]"]
    assert main([*words, "--arg", "2.5"]) == 0
    text = capsys.readouterr().out
    for part in ("graph", "forward source", "backward graph", "backward source", "launcher"):
        assert f"--- {part} " in text
    for part in ("sin", "exp", "tg_run", "inspected_energy.py:5", "float32"):
        assert part in text


def test_inspect_without_arguments_says_how_to_give_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "inspected_uncalled.py"
    file.write_text(INSPECTED)
    assert main(["inspect", f"{file}:energy"]) == 2
    assert "--arg 'float32[3,4]'" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "fault"), [(1, "missing a required argument"), (4, "too many")])
def test_inspect_with_a_wrong_number_of_arguments_shows_the_signature(
    count: int, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "inspected_short.py"
    file.write_text(INSPECTED)
    assert main(["inspect", f"{file}:energy", *["--arg", "float32[3]"] * count]) == 2
    text = capsys.readouterr().err
    assert "ParameterError: inspect: energy(x, y, k): " in text and fault in text
    assert f"got {count} --arg. Give one --arg for each parameter" in text


KINDS = """
import tracegrad as tg

def plain(x):
    return (x * x).sum()

compiled = tg.compile(plain)

class Net(tg.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tg.nn.Linear(4, 2)

    def forward(self, x):
        return tg.tanh(self.inner(x)).sum()

net = Net()

@tg.compile
def used(x):
    return (x * x).sum()

used(tg.ones(3, requires_grad=True))
"""


@pytest.mark.parametrize("name", ["plain", "compiled", "net", "used"])
def test_inspect_shows_functions_compiled_ones_and_modules(name: str, tmp_path: Path) -> None:
    file = tmp_path / "inspected_kinds.py"
    file.write_text(KINDS)
    words = [sys.executable, "-m", "tracegrad", "inspect", f"{file}:{name}"]
    words += [] if name == "used" else ["--arg", "float32[5,4]"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(none:" not in done.stdout and done.stdout.count("tg_run(void **args)") == 2
    assert ("tanh" in done.stdout) == (name == "net")


def test_inspect_of_a_module_with_too_few_arguments_shows_forward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "inspected_net.py"
    file.write_text(KINDS)
    assert main(["inspect", f"{file}:net"]) == 2
    assert "net(x): missing a required argument: 'x'; got 0 --arg" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "inspected_pipe.py"
    file.write_text("import sys, tracegrad as tg\nprint('x' * 1_000_000)\n" + KINDS)
    words = [sys.executable, "-m", "tracegrad", "inspect", f"{file}:used"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10) == "x" * 10
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    process.stderr.close()
