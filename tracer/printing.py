"""How a tensor prints: PyTorch's layout to the letter.

One formatter is chosen for all numbers of a tensor, rows are laid out recursively, then suffixes
(`grad_fn=`, `requires_grad=`, `dtype=`) follow on the same line or a new one. Start at `text`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import GradientError, OperandError, ParameterError
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.tensor import Tensor, dtype_of


@dataclass(frozen=True)
class Options:
    """What `set_printoptions` sets."""

    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_PROFILES = {
    "default": Options(),
    "short": Options(precision=2, edgeitems=2),
    "full": Options(threshold=math.inf),
}
_current = [Options()]


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print: digits, summarising above `threshold` elements, width.

    All are checked before any is set. PyTorch accepts anything here, and fails when it prints.

    Args:
        precision: digits after the point, at least 0.
        threshold: a number; tensors of more elements are summarised.
        edgeitems: elements that a summary shows at each end, at least 0.
        linewidth: characters in a line, a number.
        profile: "default", "short" or "full", which the others then change.
        sci_mode: True or False; None chooses by the values.
    Raises:
        OperandError: a value of the wrong type.
        ParameterError: another profile; a value out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.set_printoptions(precision=2)
        >>> tg.tensor([1.2345])
        tensor([1.23])
        >>> tg.set_printoptions(profile="default")
    """
    chosen = _current[0]
    if profile is not None:
        if not isinstance(profile, str):
            raise _wrong("profile", "text", profile)
        if profile not in _PROFILES:
            raise ParameterError(
                f"set_printoptions: profile must be one of {', '.join(_PROFILES)}, got {profile!r}"
            )
        chosen = _PROFILES[profile]
    if sci_mode is not None and not isinstance(sci_mode, bool):
        raise _wrong("sci_mode", "True, False or None", sci_mode)
    given = {
        "precision": _count("precision", precision),
        "threshold": _number("threshold", threshold),
        "edgeitems": _count("edgeitems", edgeitems),
        "linewidth": _number("linewidth", linewidth),
    }
    if given["linewidth"] is not None:
        if math.isinf(given["linewidth"]):
            raise ParameterError(f"set_printoptions: linewidth must be finite, got {linewidth}")
        given["linewidth"] = math.floor(given["linewidth"])
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    _current[0] = replace(chosen, **changes, sci_mode=sci_mode)


def _wrong(name: str, wanted: str, value: Any) -> OperandError:
    return OperandError(f"set_printoptions: {name} must be {wanted}, not {type(value).__name__}")


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _wrong(name, "an int", value)
    if value < 0:
        raise ParameterError(f"set_printoptions: {name} must not be negative, got {value}")
    return int(value)


def _number(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _wrong(name, "a number", value)
    if value != value:
        raise ParameterError(f"set_printoptions: {name} must be a number, got nan")
    return value


def get_printoptions() -> dict[str, Any]:
    """The options in force."""
    return dict(vars(_current[0]))


def text(
    x: Tensor, prefix: str = "tensor(", extra: Sequence[str] = (), contents: str | None = None
) -> str:
    """The `repr` of a tensor.

    `extra` are suffixes to add; `contents`, if given, stands in the place of the values.
    """
    options = _current[0]
    suffixes = []
    array = x._array
    if x.device.type != "cpu":
        suffixes.append(f"device='{x.device}'")
        array = array if contents is not None else host(array)
    if contents is not None:
        body = contents
        if x.dtype not in (dtypes.get_default_dtype(), dtypes.int64, dtypes.bool_):
            suffixes.append(f"dtype={x.dtype}")
    elif array.size == 0:
        body = "[]"
        if array.ndim != 1:
            suffixes.append(f"size={tuple(array.shape)}")
        if x.dtype is not dtypes.get_default_dtype():
            suffixes.append(f"dtype={x.dtype}")
    else:
        body = _body(array, len(prefix), options)
        if not options.edgeitems:
            suffixes.append(f"size={tuple(array.shape)}")
        if x.dtype not in (dtypes.get_default_dtype(), dtypes.int64, dtypes.bool_):
            suffixes.append(f"dtype={x.dtype}")
    try:
        node = x.grad_fn
    except GradientError:  # a view whose base was written to, and whose history cannot follow
        name = "Invalid"
    else:
        name = node.name().rpartition("::")[2] if node is not None else ""
    if name:
        suffixes.append(f"grad_fn=<{name}>")
    elif x.requires_grad:
        suffixes.append("requires_grad=True")
    suffixes.extend(extra)
    return _with_suffixes(prefix + body, suffixes, len(prefix), options.linewidth)


def _with_suffixes(body: str, suffixes: list[str], indent: int, linewidth: int) -> str:
    """Append each suffix to the last line, or to a new one where it would pass the width."""
    used = len(body) - body.rfind("\n") + 1
    parts = [body]
    for suffix in suffixes:
        if used + len(suffix) + 2 > linewidth:
            parts.append(",\n" + " " * indent + suffix)
            used = indent + len(suffix)
        else:
            parts.append(", " + suffix)
            used += len(suffix) + 2
    return "".join(parts) + ")"


def _body(array: np.ndarray, indent: int, options: Options) -> str:
    if dtype_of[array.dtype].is_floating_point and array.dtype.itemsize == 2:
        array = array.astype(np.float32)  # half types print as float32
    summarize = array.size > options.threshold
    shown = _edges(array, options.edgeitems) if summarize else array
    width, write = _formatter(shown, options)
    if array.ndim == 0:
        return write(array.item())
    return _rows(array, indent, summarize, width, write, options)


def _edges(array: np.ndarray, count: int) -> np.ndarray:
    """Only the elements that a summary shows."""
    for axis, size in enumerate(array.shape):
        if size > 2 * count:
            index = [*range(count), *range(size - count, size)]
            array = array.take(index, axis)
    return array


def _formatter(shown: np.ndarray, options: Options) -> tuple[int, Callable[[Any], str]]:
    """Width of the widest number, and how to write one."""
    if shown.dtype.kind != "f":
        width = max((len(str(v)) for v in shown.ravel().tolist()), default=1)
        return width, lambda v: str(v).rjust(width)
    values = shown.astype(np.float64).ravel()
    values = values[np.isfinite(values) & (values != 0)]
    whole = bool((values == np.ceil(values)).all())
    style = _style(values, whole, options)
    width = max((len(style(v)) for v in values.tolist()), default=1)
    return width, lambda v: style(v).rjust(width)


def _style(values: np.ndarray, whole: bool, options: Options) -> Callable[[float], str]:
    digits = options.precision
    scientific = bool(options.sci_mode)
    if options.sci_mode is None and values.size:
        low, high = np.abs(values).min(), np.abs(values).max()
        scientific = high / low > 1000.0 or high > 1e8 or (not whole and low < 1e-4)
    if scientific and values.size:
        return lambda v: f"{v:.{digits}e}"
    if whole:
        return lambda v: f"{v:.0f}" + ("." if math.isfinite(v) else "")
    return lambda v: f"{v:.{digits}f}"


def _rows(
    array: np.ndarray, indent: int, summarize: bool, width: int,
    write: Callable[[Any], str], options: Options,
) -> str:  # fmt: skip
    """One level of brackets."""
    edge = options.edgeitems
    cut = summarize and array.shape[0] > 2 * edge
    if array.ndim == 1:
        if summarize and not edge:
            parts = ["..."]
        elif cut:
            parts = [write(v) for v in array[:edge].tolist()] + [" ..."]
            parts += [write(v) for v in array[array.shape[0] - edge :].tolist()]
        else:
            parts = [write(v) for v in array.tolist()]
        per_line = max(1, (options.linewidth - indent) // (width + 2))
        lines = [", ".join(parts[i : i + per_line]) for i in range(0, len(parts), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
    chosen = [*array[:edge], None, *array[array.shape[0] - edge :]] if cut else list(array)
    blocks = [
        "..." if a is None else _rows(a, indent + 1, summarize, width, write, options)
        for a in chosen
    ]
    return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(blocks) + "]"
