"""`FloatTensor`, `LongTensor` and their kin: PyTorch's old constructors, one per dtype.

Each makes tensors of its dtype and is what `isinstance` and `Tensor.type` may be asked with.
Start reading at `legacy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError
from tracegrad.tracer.arguments import size_argument, type_name
from tracegrad.tracer.device import Size, as_device
from tracegrad.tracer.factories import allocate, new_leaf, placed
from tracegrad.tracer.profiling import note_made, now, profilers
from tracegrad.tracer.reading import array_of
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor


def legacy(dtype: DType, given: tuple[Any, ...], options: dict[str, Any]) -> np.ndarray:
    """The memory that `Tensor(...)` asks for: sizes as ints or a Size, or a sequence of data.

    Raises:
        OperandError: no sequence, or a tensor of another dtype.
    """
    for name in options:
        if name not in ("device", "data", "size"):
            raise OperandError(f"new() got an unexpected keyword argument '{name}'")
    where = None if options.get("device") is None else as_device(options["device"])
    return placed(_legacy(dtype, given, options), where)


def _legacy(dtype: DType, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    given = (*given, *(options[name] for name in ("data", "size") if name in options))
    if not given:
        return np.empty(0, dtype.numpy)
    first = given[0]
    if isinstance(first, Size | int) and not isinstance(first, bool) or len(given) > 1:
        return allocate(np.empty, size_argument("new", given), dtype.numpy)
    if isinstance(first, Tensor):
        if first.dtype is not dtype:
            raise OperandError(
                f"expected a tensor of dtype torch.{dtype.name}, got torch.{first.dtype.name}; "
                f"convert it with .to(torch.{dtype.name})"
            )
        return first._array
    if isinstance(first, str | bytes):
        raise OperandError(f"new(): invalid data type '{type(first).__name__}'")
    if isinstance(first, np.generic) or not hasattr(type(first), "__len__"):
        raise OperandError(f"new(): data must be a sequence (got {type_name(first)})")
    return array_of(first, dtype)


def made(dtype: DType, given: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """What an old constructor returns: `legacy` as a tensor."""
    since = now()
    out = new_leaf(legacy(dtype, given, options), False)
    if profilers:
        note_legacy(out, given, options, since)
    return out


def note_legacy(out: Tensor, given: tuple[Any, ...], options: dict[str, Any], since: int) -> None:
    """Tell a profiler of the call of an old constructor."""
    first = (*given, options.get("data", 0))[0]
    if not isinstance(first, Tensor):  # whose memory it shares
        note_made("empty" if isinstance(first, Size | int) else "lift_fresh", (out,), since)


class _Typed(type):
    """The type of the old constructors: a tensor is an instance of the one with its dtype."""

    dtype: DType

    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, Tensor) and x.dtype is cls.dtype and x.device.type == "cpu"

    def __call__(cls, *given: Any, **options: Any) -> Tensor:
        return made(cls.dtype, given, options)

    def __repr__(cls) -> str:
        return f"<class 'torch.{cls.__name__}'>"


def _typed(dtype: DType) -> _Typed:
    text = f"Tensors of dtype {dtype.name}. Prefer `tensor(data, dtype={dtype.name})`."
    name = f"{scalar_type_name(dtype)}Tensor"
    return _Typed(name, (), {"dtype": dtype, "__doc__": text, "__module__": __name__})


TYPES: dict[str, _Typed] = {t.__name__: t for t in map(_typed, (*dtypes.INTEGERS, *dtypes.FLOATS,
                                                                dtypes.bool_))}  # fmt: skip
