"""Run mypy over the five folders as the one package that they are installed as, and benchmarks.

mypy finds modules by folder names, and `ir/` is imported as `tracegrad.ir`: so a tree of symbolic
links with the installed shape is built in `.build/types`, and the paths in mypy's answer are
turned back into those of the repository. Start reading at `main`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / ".build" / "types"
MAPPED = ("ir", "codegen", "runtime", "tracer")


def link_tree() -> None:
    """Make `.build/types` hold `tracegrad` as it is installed, and `benchmarks` beside it."""
    package = TREE / "tracegrad"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {package / p.name: p for p in (ROOT / "tracegrad").iterdir()}
    wanted.update({package / name: ROOT / name for name in MAPPED})
    wanted[TREE / "benchmarks"] = ROOT / "benchmarks"
    for link in package.iterdir():
        if link not in wanted:
            link.unlink()
    for link, target in wanted.items():
        relative = os.path.relpath(target, link.parent)
        if link.is_symlink() and os.readlink(link) == relative:
            continue
        temporary = TREE / f".{link.name}.{os.getpid()}"
        temporary.symlink_to(relative)
        temporary.replace(link)


def repository_paths(report: str) -> str:
    """`.build/types/tracegrad/ir/graph.py:3` -> `ir/graph.py:3`, and so for every folder."""
    tree = re.escape(os.path.relpath(TREE, ROOT)) + "/"
    report = re.sub(rf"{tree}tracegrad/((?:{'|'.join(MAPPED)})/)", r"\1", report)
    return re.sub(tree, "", report)


def main() -> int:
    """Check the package; further arguments go to mypy."""
    link_tree()
    command = [sys.executable, "-m", "mypy", "-p", "tracegrad", "-p", "benchmarks"]
    command += sys.argv[1:]
    environment = os.environ | {"MYPYPATH": str(TREE)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(repository_paths(result.stdout), end="")
    print(result.stderr, end="", file=sys.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
