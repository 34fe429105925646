"""`.ci/setup.py`: what it says when a tool is missing, when it installs, that invocations queue."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "setup.py"


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_setup", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_the_missing_venv_module(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    assert "module 'venv' is missing" in setup.missing_tool()
    assert "apt-get install python3-venv" in setup.missing_tool()


def test_names_the_missing_compiler(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    assert "no C compiler was found (looked for no-such-compiler -m64)" in setup.missing_tool()


def test_names_the_version_needed(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "OLDEST", (9, 9))
    assert "Python 9.9 or newer is needed" in setup.missing_tool()


PATCHED = """
    import importlib.util, sys, time
    spec = importlib.util.spec_from_file_location("ci_setup", sys.argv[1])
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    def install(venv, python):
        print("begin", time.monotonic())
        time.sleep(0.3)
        python.parent.mkdir(parents=True)  # fails where another one is at it
        python.symlink_to(sys.executable)
        print("end", time.monotonic())
    setup.install = install
    sys.argv = ["setup.py", sys.argv[2]]
    sys.exit(setup.main())
"""


def test_two_at_once_install_once(tmp_path: Path) -> None:
    script = tmp_path / "patched.py"
    script.write_text(textwrap.dedent(PATCHED))
    command = [sys.executable, str(script), str(SCRIPT), str(tmp_path / "venv")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(p.communicate(timeout=60)[0] for p in running)
    assert [p.returncode for p in running] == [0, 0, 0]
    assert said.count("begin") == said.count("end") == 1


def test_a_changed_stamp_installs_again(setup: ModuleType, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    installed = []

    def install(venv: Path, python: Path) -> None:
        installed.append(venv)
        python.parent.mkdir(parents=True, exist_ok=True)
        if not python.exists():
            python.symlink_to(sys.executable)

    monkeypatch.setattr(setup, "install", install)
    monkeypatch.setattr(sys, "argv", ["setup.py", str(tmp_path / "venv")])
    assert setup.main() == setup.main() == 0
    assert len(installed) == 1
    monkeypatch.setattr(setup, "wanted_stamp", lambda: "of another pyproject.toml")
    assert setup.main() == 0
    assert len(installed) == 2
