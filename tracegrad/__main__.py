"""The command line: `python -m tracegrad inspect | cache | doctor`.

    python -m tracegrad inspect train.py:energy --arg 'float32[3,4]' --arg 0.5
    python -m tracegrad cache ls | path | why KEY | prune | clear
    python -m tracegrad doctor

Start reading at `main`.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tracegrad.ir.errors import CaptureError, OperandError, ParameterError, TracegradError

CLOSED_PIPE = 141
"""128 + SIGPIPE: what a shell reports for a program that a closed pipe has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 when a check failed, 2 for wrong use."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except TracegradError as error:
        print(f"tracegrad: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tracegrad", description="Look inside.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("inspect", help="print graph, C and launcher of a function")
    show.add_argument("target", metavar="FILE:FUNCTION")
    show.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="SPEC",
        help="one argument of a call: float32[3,4] for random data, or a Python number",
    )
    show.add_argument("--no-grad", action="store_true", help="arguments need no gradient")
    show.set_defaults(run=_inspect)

    cache = commands.add_parser("cache", help="the disk cache of compiled kernels")
    actions = cache.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("ls", _cache_ls, "list the kernels, last used first"),
        ("path", _cache_path, "print the folder"),
        ("clear", _cache_clear, "delete everything"),
    ):
        actions.add_parser(name, help=text).set_defaults(run=run)
    prune = actions.add_parser("prune", help="delete what was used least recently")
    prune.add_argument("--size", type=float, metavar="MIB", help="go below 80 %% of this size")
    prune.set_defaults(run=_cache_prune)
    why = actions.add_parser("why", help="print what a key was made from")
    why.add_argument("key", help="the key or its first digits")
    why.set_defaults(run=_cache_why)

    commands.add_parser("doctor", help="check the machine by trying it").set_defaults(run=_doctor)
    return parser


# --- inspect --------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> int:
    function = find_function(options.target)
    function.wait()
    if options.arg or not function.cache_info().traces:  # the file itself may have called it
        arguments = [make_argument(text, not options.no_grad) for text in options.arg]
        check_arguments(function, options.target.rpartition(":")[2], arguments)
        function(*arguments)
    function.wait()
    if not function.cache_info().traces:
        raise CaptureError(f"there is nothing to show.\n{function.explain()}")
    parts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("graph", function.graph),
        ("forward source", lambda: function.source("forward")),
        ("backward graph", function.backward_graph),
        ("backward source", lambda: function.source("backward")),
        ("launcher", function.launcher),
        ("why", function.explain),
    )
    for title, make in parts:
        print(f"--- {title} {'-' * (90 - len(title))}\n{_text(make)}\n")
    return 0


def check_arguments(function: Any, name: str, arguments: Sequence[Any]) -> None:
    """See that a call would find its parameters.

    Raises:
        ParameterError: there are too few or too many arguments.
    """
    signature = inspect.signature(getattr(function, "forward", function))  # that of a module
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ParameterError(
            f"inspect: {name}{signature}: {error}; got {len(arguments)} --arg. Give one --arg for "
            "each parameter, in order: --arg 'float32[3,4]' for a tensor, --arg 2.5 for a number"
        ) from None


def _text(make: Callable[[], object]) -> str:
    """What a method of the compiled function returns as text, or why it has nothing to show."""
    try:
        return str(make()).rstrip()
    except CaptureError as error:
        return f"(none: {error})"


def find_function(target: str) -> Any:
    """Import `FILE` and return its compiled `FUNCTION`; a plain function is compiled first.

    Raises:
        ParameterError: the text has no colon, or the file or the name does not exist.
        OperandError: the name is not a function, or it is a class.
    """
    from tracegrad.tracer.compile import CompiledFunction, compile

    file, colon, name = target.rpartition(":")
    if not colon or not name.replace(".", "_").isidentifier():
        raise ParameterError(f"inspect: expected FILE:FUNCTION, got {target!r}")
    path = Path(file).resolve()
    if not path.is_file():
        raise ParameterError(f"inspect: there is no file {path}")
    found: Any = _import_file(path)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise ParameterError(f"inspect: {path.name} has no {part!r}; it has {', '.join(names)}")
        found = getattr(found, part)
    if isinstance(found, type):
        raise OperandError(
            f"inspect: {name} is a class; name an instance of it, such as `net = {name}(...)`"
        )
    if not callable(found):
        raise OperandError(f"inspect: {name} is a {type(found).__name__}, not a function")
    return found if isinstance(found, CompiledFunction) else compile(found)


def _import_file(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ParameterError(f"inspect: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def make_argument(text: str, requires_grad: bool = True) -> Any:
    """An argument from its description: `float32[3,4]` gives normal data, `2.5` the number.

    Integer types give whole numbers from 0 to 9, bool gives both values; the data are the same in
    every run. Floating tensors require gradients if asked.

    Raises:
        ParameterError: the text is neither.
    """
    import numpy as np

    import tracegrad

    match = re.fullmatch(r"\s*([a-z]\w*)\s*\[([\d,\s]*)\]\s*", text)
    if match is None:
        return _make_number(text)
    name, sizes = match.groups()
    shape = tuple(int(n) for n in sizes.split(",") if n.strip())
    rng = np.random.default_rng(0)
    dtype = getattr(tracegrad, name, None)
    if name.startswith(("float", "bfloat")) and dtype is not None:
        data = tracegrad.tensor(rng.standard_normal(shape).astype(np.float32)).to(dtype)
        return data.detach().requires_grad_() if requires_grad else data
    if (name == "bool" or name.startswith(("int", "uint"))) and dtype is not None:
        high = 2 if name == "bool" else 10
        return tracegrad.tensor(rng.integers(0, high, shape)).to(dtype)
    raise ParameterError(f"--arg {text!r}: tracegrad has no dtype {name!r}; try float32 or int64")


def _make_number(text: str) -> Any:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, (bool, int, float)):
        raise ParameterError(f"--arg {text!r}: expected a tensor like float32[3,4] or a number")
    return value


# --- cache and doctor -----------------------------------------------------------------------------


def _cache_ls(_: argparse.Namespace) -> int:
    from tracegrad.runtime import cache, inventory

    found = inventory.entries()
    for entry in found:
        used = datetime.datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        label = entry.meta.get("label", "?")
        print(f"{entry.key[:12]}  {used}  {entry.size / 1024:7.0f} KiB  {label}")
    used_mib, limit = cache.total_size() / 2**20, cache.size_limit() / 2**20
    print(f"{len(found)} kernels, {used_mib:.1f} of {limit:.0f} MiB, in {inventory.path()}")
    return 0


def _cache_path(_: argparse.Namespace) -> int:
    from tracegrad.runtime import inventory

    print(inventory.path())
    return 0


def _cache_clear(_: argparse.Namespace) -> int:
    from tracegrad.runtime import inventory

    print(f"freed {inventory.clear() / 2**20:.1f} MiB in {inventory.path()}")
    return 0


def _cache_prune(options: argparse.Namespace) -> int:
    from tracegrad.runtime import cache, inventory

    limit = None if options.size is None else int(options.size * 2**20)
    print(f"freed {cache.prune(limit) / 2**20:.1f} MiB in {inventory.path()}")
    return 0


def _cache_why(options: argparse.Namespace) -> int:
    from tracegrad.runtime import inventory

    print(inventory.why(options.key))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from tracegrad.runtime import doctor

    rows = doctor.rows()
    print(doctor.layout(rows))
    return 0 if all(row.good for row in rows) else 1


def command() -> int:
    """`main` for the shell: a reader that has closed the pipe (`| head`) ends it without a word."""
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return CLOSED_PIPE


if __name__ == "__main__":
    sys.exit(command())
