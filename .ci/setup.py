"""Make the virtual environment hold the project, editable, with the extras of development.

`python3 .ci/setup.py VENV` creates or refreshes the environment and returns at once when its stamp
fits: the stamp is a digest of `pyproject.toml`, this interpreter and the checkout's folder. A file
lock makes a second invocation wait for the first. Standard library only. Start reading at `main`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
EXTRAS = "dev"


def missing_tool() -> str | None:
    """What this machine lacks and how to get it; None when nothing is missing."""
    if sys.version_info < OLDEST:
        have = ".".join(map(str, sys.version_info[:3]))
        return f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, {sys.executable} is {have}.\n" \
               "Choose another one: make PYTHON=python3.12"  # fmt: skip
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            return f"the Python module {module!r} is missing from {sys.executable}.\n" \
                   "Debian and Ubuntu: apt-get install python3-venv"  # fmt: skip
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cc"]
    if not any(shutil.which(name.split()[0]) for name in compilers):
        return f"no C compiler was found (looked for {', '.join(compilers)}).\n" \
               "Install gcc or clang, or name one: make CC=/path/to/compiler"  # fmt: skip
    return None


def wanted_stamp() -> str:
    """What the environment is made from, as one digest."""
    parts = (ROOT / "pyproject.toml").read_bytes(), sys.version.encode(), os.fsencode(ROOT)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def works(python: Path) -> bool:
    """Whether the environment's interpreter starts (its base may have been removed)."""
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", ""], capture_output=True).returncode == 0


def install(venv: Path, python: Path) -> None:
    """Create the environment where there is none, then install the project into it."""
    if not works(python):
        print(f"creating {venv} with {sys.executable}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    print(f"installing tracegrad[{EXTRAS}] into {venv}", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--editable", f"{ROOT}[{EXTRAS}]"], check=True)


def main() -> int:
    """Bring the environment named on the command line up to date."""
    problem = missing_tool()
    if problem is not None:
        print(f"setup: {problem}", file=sys.stderr)
        return 1
    venv = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv").absolute()
    python, stamp = venv / "bin" / "python", venv / ".stamp"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(venv.with_name(venv.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = wanted_stamp()
        if stamp.exists() and stamp.read_text() == wanted and works(python):
            return 0
        stamp.unlink(missing_ok=True)
        try:
            install(venv, python)
        except subprocess.CalledProcessError as error:
            print(f"setup: failed: {' '.join(error.cmd)}", file=sys.stderr)
            return 1
        stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
