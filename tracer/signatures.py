"""What a call with wrong arguments is told: PyTorch's words, from the lists of parameters that
PyTorch's functions take.

Functions check what they need; only when one has refused a call is it looked up here how PyTorch
would have put it. So a call that is right pays nothing. Start reading at `explained`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError
from tracegrad.tracer.arguments import type_name
from tracegrad.tracer.composites import retold
from tracegrad.tracer.layout import memory_format
from tracegrad.tracer.tensor import Tensor


@dataclass(frozen=True)
class Parameter:
    """One parameter: `kind` is a word of `_KINDS`."""

    kind: str
    name: str
    default: str | None
    keyword: bool

    def takes(self, x: Any) -> bool:
        """Whether `x` is of the right type."""
        if x is None and (self.default == "None" or self.kind == "ints"):
            return True
        return _KINDS[self.kind](x)

    def word_in(self, kwargs: Mapping[str, Any]) -> str | None:
        """The keyword that gives the parameter: its name, or NumPy's."""
        words = (self.name, *_NUMPY.get(self.name, ()))
        return next((w for w in words if w in kwargs), None)

    @property
    def shown(self) -> str:
        """The type, as messages name it."""
        return _SHOWN.get(self.kind, self.kind)

    def __str__(self) -> str:
        text = f"{self.shown} {self.name}"
        return text if self.default is None else f"{text} = {self.default}"


@dataclass(frozen=True)
class Signature:
    """One list of parameters."""

    parameters: tuple[Parameter, ...]

    @property
    def positional(self) -> list[Parameter]:
        """The parameters that may be given in their place."""
        return [p for p in self.parameters if not p.keyword]

    @property
    def needed(self) -> int:
        """How many arguments there must be."""
        return sum(p.default is None for p in self.parameters)

    def __str__(self) -> str:
        shown: list[str] = []
        for p in self.parameters:
            if p.keyword and "*" not in shown:
                shown.append("*")
            shown.append(str(p))
        return f"({', '.join(shown)})"

    def unpacked(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What is wrong inside of lists among arguments that fit; None where nothing is."""
        given = [*zip(self.positional, args), *((p, kwargs.get(p.name)) for p in self.parameters)]
        lists = [(p, x) for p, x in given if p.kind in ("ints", "ints_")]
        return next((t for p, x in lists if (t := _not_unpacked(name, p, x)) is not None), None)

    def fault(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What is wrong with these arguments; None where nothing is."""
        places = self.positional
        listed = len(places) == 1 and places[0].kind in ("ints", "ints_")
        if len(args) > len(places) and not listed:
            return _surplus(name, self.needed, len(places), len(args))
        given, used, at = args, set(), 0
        for p in self.parameters:
            if at < len(given) and not p.keyword:
                x = given[at]
                if not p.takes(x):
                    if at == 0 and listed and _is_int(x):
                        at = len(given)
                        continue
                    return _wrong(name, p, at + 1, x)
                at += 1
            elif (word := p.word_in(kwargs)) is not None:
                used.add(word)
                if not p.takes(kwargs[word]):
                    return _wrong(name, p, 0, kwargs[word])
            elif p.default is None:
                return _missing(name, [q.name for q in self.parameters if q.default is None
                                       and q.name not in kwargs][at:])  # fmt: skip
        if at < len(given):
            return _surplus(name, self.needed, len(places), len(given))
        for word in kwargs if len(used) < len(kwargs) else ():
            if all(p.name != word for p in self.parameters):
                return f"{name}() got an unexpected keyword argument '{word}'"
            if word not in used:
                return f"{name}() got multiple values for argument '{word}'"
        return None


def _not_unpacked(name: str, p: Parameter, x: Any) -> str | None:
    """What PyTorch says of a list that begins with an int and has something else, too."""
    for at, n in enumerate(x if isinstance(x, tuple | list) else ()):
        if not _is_int(n):
            return (
                f"{name}(): argument '{p.name}' failed to unpack the object at pos {at + 1} with "
                f'error "type must be tuple of ints,but got {type_name(n)}"'
            )
    return None


def _surplus(name: str, least: int, most: int, given: int) -> str:
    counted = "was" if given == 1 else "were"
    takes = f"from {least} to {most} positional arguments" if least != most else (
        f"{most} positional argument{'' if most == 1 else 's'}"
    )  # fmt: skip
    return f"{name}() takes {takes} but {given} {counted} given"


def _missing(name: str, names: Sequence[str]) -> str:
    plural = "s" if len(names) == 1 else ""  # as PyTorch has it
    quoted = ", ".join(f'"{n}"' for n in names)
    return f"{name}() missing {len(names)} required positional argument{plural}: {quoted}"


def _wrong(name: str, p: Parameter, position: int, x: Any) -> str:
    where = f" (position {position})" if position else ""
    head = f"{name}(): argument '{p.name}'{where} must be {p.shown}, "
    if p.kind in ("ints", "ints_") and isinstance(x, tuple | list):
        return f"{head}but found element of type {type_name(x[0])} at pos 0"
    return f"{head}not {type_name(x)}"


_NUMPY = {"dim": ("axis",), "keepdim": ("keepdims",), "input": ("x", "a", "x1"), "other": ("x2",)}

_NAMES = {word: name for name, words in _NUMPY.items() for word in words if len(word) > 1}

# ---- types --------------------------------------------------------------------------------------


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) or hasattr(type(x), "__tracegrad_bind__")


def _is_int(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.ndim == 0 and x.dtype.category == 1
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.ndim == 0 and not x.requires_grad
    return isinstance(x, bool | int | float | complex | np.number | np.bool_)


def _is_list(x: Any) -> bool:
    """Whether `x` passes for a tuple of ints: PyTorch looks at the first, until it unpacks them."""
    return isinstance(x, tuple | list) and (not x or _is_int(x[0]))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "Tensor": _is_tensor,
    "int": _is_int,
    "float": _is_number,
    "Number": _is_number,
    "bool": lambda x: isinstance(x, bool | np.bool_),
    "str": lambda x: isinstance(x, str),
    "ints": lambda x: _is_int(x) or _is_list(x),
    "ints_": lambda x: _is_list(x),
    "operand": lambda x: _is_tensor(x) or _is_number(x),
    "Tensors": lambda x: isinstance(x, tuple | list),
    "dtype": lambda x: isinstance(x, DType) or x in (float, int, bool, complex),
    "memory_format": lambda x: isinstance(x, memory_format),
    "Storage": lambda x: False,
    "name": lambda x: False,
    "DimnameList": lambda x: False,
}
_SHOWN = {
    "operand": "Tensor", "ints": "tuple of ints", "ints_": "tuple of ints", "Tensors": "tuple of Tensors",
    "dtype": "torch.dtype", "memory_format": "torch.memory_format",
}  # fmt: skip


# ---- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The lists of parameters of one function; `alone` if there are no others."""

    signatures: tuple[Signature, ...]
    alone: bool

    def fault(
        self, name: str, method: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str | None:
        """What is wrong with a call; None where nothing is."""
        if method and self.alone and not self.signatures[0].parameters:
            if kwargs:
                return f"TensorBase.{name}() takes no keyword arguments"
            return f"TensorBase.{name}() takes no arguments ({len(args)} given)" if args else None
        faults = [s.fault(name, args, kwargs) for s in self.signatures]
        if None in faults:
            return self.signatures[faults.index(None)].unpacked(name, args, kwargs)
        if self.alone:
            return faults[0]
        count = len(args) + len(kwargs)
        near = [i for i, s in enumerate(self.signatures) if s.needed <= count <= len(s.parameters)]
        if len(near) == 1:
            return faults[near[0]]
        kinds = [type_name(x) for x in args]
        kinds += [f"{word}={type_name(x)}" for word, x in sorted(kwargs.items())]
        if not args:
            kinds.append("")  # as PyTorch has it: a comma after the last
        head = f"{name}() received an invalid combination of arguments - got ({', '.join(kinds)})"
        if len(self.signatures) == 1:
            return f"{head}, but expected {self.signatures[0]}"
        rows = "".join(f"\n * {s}" for s in self.signatures)
        return f"{head}, but expected one of:{rows}"


def parsed(text: str) -> Signature:
    """The signature that a row of the table says.

    Example:
        >>> str(parsed("(Tensor input, ints dim, *, dtype dtype = None)"))
        '(Tensor input, tuple of ints dim, *, torch.dtype dtype = None)'
    """
    parameters: list[Parameter] = []
    keyword = False
    for item in re.split(r", (?![^()]*\))", text[1:-1]):
        if item == "*":
            keyword = True
        elif item:
            declared, _, default = item.partition(" = ")
            kind, name = declared.split(" ")
            parameters.append(Parameter(kind, name, default or None, keyword))
    return Signature(tuple(parameters))


@functools.cache
def table() -> tuple[dict[str, Known], dict[str, Known]]:
    """Functions and methods by name."""
    text = (resources.files("tracegrad.tracer") / "signatures.txt").read_text()
    functions, methods = (
        dict(_rows(part)) for part in text.partition("\n[functions]\n")[2].split("\n[methods]\n")
    )
    for name, known in functions.items():
        methods.setdefault(name, Known(tuple(map(_of_method, known.signatures)), known.alone))
    for name, known in tuple(methods.items()):
        methods.setdefault(f"{name}_", known)
    return functions, methods


def _rows(part: str) -> Any:
    names: list[str] = []
    rows: list[str] = []
    for line in [*part.splitlines(), "end"]:
        if line.startswith(" "):
            rows.append(line.strip())
            continue
        if rows:
            others = any(row.endswith("  and others") for row in rows)
            found = tuple(parsed(row.removesuffix("  and others")) for row in rows)
            known = Known(found, len(found) == 1 and not others)
            yield from ((name, known) for name in names)
            names, rows = [], []
        names += line.split()


def _of_method(signature: Signature) -> Signature:
    """Without the tensor whose method it is, and without `out`."""
    rest = list(signature.parameters)
    first = next((i for i, p in enumerate(rest) if p.name in ("input", "self")), None)
    if first is not None:
        del rest[first]
    return Signature(tuple(p for p in rest if p.name != "out"))


def explained(
    name: str, method: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """PyTorch's words for what is wrong with the arguments of a call.

    Args:
        name: of the function or method, as the user called it.
        method: whether the first of `args` is the tensor whose method it is.
    Returns:
        None where PyTorch takes such arguments, or the function is not in the table.
    """
    if method and not (args and _is_tensor(args[0])):
        return None
    known = table()[method].get(name)
    given = args[1:] if method else args
    return None if known is None else known.fault(name, method, given, kwargs)


def reconsidered(
    name: str, method: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What to make of a call that a function has refused.

    Returns:
        The keywords under PyTorch's names, where some had NumPy's (`axis` for `dim`): the call is
        to be tried again with them. None where there is nothing to add to the refusal.
    Raises:
        OperandError: the arguments do not fit; in PyTorch's words.
    """
    text = explained(name, method, args, kwargs)
    if text is not None:
        raise OperandError(text) from None
    if name in table()[method] and not _NAMES.keys().isdisjoint(kwargs):
        return {_NAMES.get(word, word): x for word, x in kwargs.items()}
    return None


def as_method(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a method: what it refuses is told in PyTorch's words for the method."""
    return _told(name, function, True)


def as_function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one of the namespace: what it refuses is told in PyTorch's words."""
    return _told(name, function, False)


def _told(name: str, function: Callable[..., Any], method: bool) -> Callable[..., Any]:
    composite = retold(function, functools.partial(reconsidered, name, method))
    if composite is not None:  # told by itself, without a call around it
        return composite

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception:
            again = reconsidered(name, method, args, kwargs)
            if again is None:
                raise
        return function(*args, **again)

    return call


def takes_more(function: Callable[..., Any]) -> bool:
    """Whether a function of a tensor takes anything else."""
    code = getattr(function, "__wrapped__", function).__code__
    return code.co_argcount + code.co_kwonlyargcount > 1 or bool(code.co_flags & _LISTS)


_LISTS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
