"""Fill README's generated sections: the program's output, and the table of benchmarks.

A section stands between `<!-- name: begin -->` and `<!-- name: end -->`. The output is that of
running the program printed above it; the table is that of `benchmarks/results/published.json`.
With `--check`, nothing is written and the status says whether README is true. Start at `main`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PUBLISHED = ROOT / "benchmarks" / "results" / "published.json"

MACHINE_SPECIFIC = re.compile(r"-march=|\bgcc\b|\bclang\b|/\*.*\b(?:sha256|key)\b")
"""Lines of output that another compiler or processor may change."""


def section(text: str, name: str) -> str:
    """What stands between a section's marks.

    Raises:
        ValueError: the marks are missing.
    """
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"README has no section {name!r}")
    return found.group(1)


def with_section(text: str, name: str, content: str) -> str:
    """The text with a section's content replaced."""
    old = section(text, name)
    begin = text.index(f"<!-- {name}: begin -->\n") + len(f"<!-- {name}: begin -->\n")
    return text[:begin] + content + text[begin + len(old) :]


def fenced(text: str) -> str:
    """The code of the one fenced block in a section; empty where there is none."""
    found = re.search(r"```\w*\n(.*?)```", text, re.DOTALL)
    return found.group(1) if found else ""


def program_output(program: str) -> str:
    """What a program prints, run as a file named `first.py`.

    Raises:
        RuntimeError: it failed; the message is what it wrote to standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.py"
        path.write_text(program)
        done = subprocess.run(
            [sys.executable, path.name], cwd=folder, capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"README's program failed:\n{done.stderr}")
    return done.stdout.rstrip() + "\n"


def comparable(output: str) -> list[str]:
    """The lines of an output that are the same on every machine."""
    return [line.rstrip() for line in output.splitlines() if not MACHINE_SPECIFIC.search(line)]


def benchmark_table() -> str:
    """The table of the published measurement."""
    if not PUBLISHED.exists():
        return ""
    sys.path.insert(0, str(ROOT))
    from benchmarks.report import markdown

    return markdown(json.loads(PUBLISHED.read_text())) + "\n"


def main() -> int:
    """Write README, or with `--check` compare it."""
    text = README.read_text()
    output = program_output(fenced(section(text, "program")))
    if "--check" in sys.argv[1:]:
        fits = comparable(fenced(section(text, "output"))) == comparable(output)
        fits = fits and section(text, "benchmarks") == benchmark_table()
        print("README is true" if fits else "README is out of date: make readme")
        return int(not fits)
    text = with_section(text, "output", f"```c\n{output}```\n")
    README.write_text(with_section(text, "benchmarks", benchmark_table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
