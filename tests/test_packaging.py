"""The package as users get it: what a wheel holds, how layers import, what an import loads."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "ir": "tracegrad.ir",
    "codegen": "tracegrad.codegen",
    "runtime": "tracegrad.runtime",
    "tracer": "tracegrad.tracer",
    "tracegrad": "tracegrad",
}
ORDER = list(FOLDERS.values())  # lowest first; a layer imports itself and those before it
HEAVY = ("jinja2", "scipy", "cffi.cparser", "pycparser", "ml_dtypes", "platformdirs", "filelock")


def shipped() -> dict[str, Path]:
    """Every file that must be installed, by its path in the package."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                relative = path.relative_to(ROOT / folder)
                found[f"{package.replace('.', '/')}/{relative.as_posix()}"] = path
    return found


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names inside a wheel that is built from a copy of the source."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    (source / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_wheel_holds_every_module_template_and_marker(wheel_names: list[str]) -> None:
    missing = sorted(set(shipped()) - set(wheel_names))
    assert not missing, "add them to [tool.setuptools] packages or package-data"
    assert "tracegrad/py.typed" in wheel_names


def test_every_package_is_listed_once() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    listed = re.findall(r'"([\w.]+)"', block.group(1))
    folders = {name.rpartition("/")[0].replace("/", ".") for name in shipped()}
    assert {"tracegrad.func", "tracegrad.utils"} <= folders
    assert sorted(listed) == sorted(folders)


def test_wheel_puts_nothing_beside_tracegrad(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tracegrad"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every imported module of a file, those inside functions too; relative ones start with a dot."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def layer(module: str) -> int | None:
    """The layer of a module of ours; None for others."""
    if module.split(".")[0] != "tracegrad":
        return None
    inner = [i for i, package in enumerate(ORDER[:-1]) if f"{module}.".startswith(f"{package}.")]
    return inner[0] if inner else len(ORDER) - 1


def sources(folder: str) -> list[Path]:
    """The Python files of a folder."""
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_layers_import_downwards_and_absolutely(folder: str) -> None:
    own = ORDER.index(FOLDERS[folder])
    wrong = []
    for path in sources(folder):
        for line, module in imports(path):
            target = layer(module)
            outside = module.split(".")[0] in FOLDERS and target is None
            if module.startswith(".") or outside or (target is not None and target > own):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong


def test_the_import_check_sees_an_upward_import(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text("def f():\n    from tracegrad.tracer.tensor import Tensor\n")
    assert [(line, layer(module)) for line, module in imports(path)] == [(2, 3)]


def test_ir_needs_only_numpy_and_scipy() -> None:
    allowed = {"tracegrad", "numpy", "scipy", "ml_dtypes", *sys.stdlib_module_names}
    found = {module.split(".")[0] for p in sources("ir") for _, module in imports(p)}
    assert found <= allowed


def test_import_loads_no_heavy_module() -> None:
    probe = f"import sys, tracegrad; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def loaded_by(module: str) -> set[str]:
    """The names of the modules that importing `module` loads."""
    probe = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_of_others_that_numpy_does_not() -> None:
    extra = {name.split(".")[0] for name in loaded_by("tracegrad") - loaded_by("numpy")}
    assert extra - set(sys.stdlib_module_names) <= {"tracegrad"}  # numpy.random would be 10 ms


def test_import_loads_no_code_generation() -> None:
    late = ("tracegrad.codegen", "tracegrad.runtime.kernels", "tracegrad.runtime.cuda.programs")
    assert not [name for name in loaded_by("tracegrad") if name.startswith(late)]


def test_every_file_opens_with_a_docstring() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for folder in (*FOLDERS, "benchmarks", "examples", "docs")
        for path in sources(folder)
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not bare


def test_continuous_integration_runs_the_readme_command() -> None:
    commands = re.findall(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 1
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 == 0o111
    assert script.read_text().rstrip().endswith("exec make test")


def test_only_public_names_are_listed() -> None:
    """`dir()` and completion show what users call, not what the files import for themselves."""
    import tracegrad as tg
    from tracegrad.nn import functional

    public = {name for name in dir(tg) if not name.startswith("_")}
    assert not public & {"Any", "annotations", "importlib", "math", *FOLDERS} - {"tracegrad"}
    assert {"compile", "nn", "optim", "autograd", "Tensor", "float32", "add", "errors"} <= public
    assert not {"Any", "annotations", "importlib"} & set(vars(tg))
    assert public >= set(tg.__all__)
    for name in public:
        found = getattr(tg, name)
        home = getattr(found, "__module__", None) or getattr(found, "__name__", "")
        assert home.split(".")[0] not in ("typing", "collections", "importlib", "math"), name
    assert dir(functional) == sorted(functional.__all__)
    for name in functional.__all__:
        assert getattr(functional, name).__module__.startswith("tracegrad."), name
