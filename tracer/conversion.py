"""A tensor in another dtype, by value or bit by bit. Start reading at `to`.

`tracegrad.tracer.methods` attaches these functions to the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError, ParameterError, ShapeError
from tracegrad.tracer import shapes
from tracegrad.tracer.arguments import need_tensor, type_name
from tracegrad.tracer.device import as_device, device
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.layout import contiguous_format, memory_format, need_format
from tracegrad.tracer.moving import moved
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor, wrap

_ON_CUDA = "torch.cuda."
_SIGNATURES = (
    "(device, dtype, non_blocking, copy), (dtype, non_blocking, copy), (Tensor, non_blocking, copy)"
)


def to(self: Tensor, *args: Any, **options: Any) -> Tensor:
    """The tensor in another dtype or on another device; itself where nothing changes.

    Called as `to(dtype)`, `to(device, dtype)` or `to(other)`, each with `non_blocking`, `copy` and
    `memory_format`.

    Raises:
        OperandError: arguments of other types.
        DTypeError: the dtype is complex.
        DeviceError: the device is not there.

    Example:
        >>> import tracegrad as tg
        >>> tg.ones(2).to(tg.int32)
        tensor([1, 1], dtype=torch.int32)
    """
    if len(args) == 1 and not options and type(args[0]) is DType:
        target = args[0] if args[0].kind != "c" else dtypes.as_dtype(args[0])
        return self if target is self.dtype else dispatch(ops.cast, (self,), {"dtype": target})
    given = _bound(args, options)
    dtype, where = given.get("dtype"), self.device
    if "other" in given:
        dtype, where = given["other"].dtype, given["other"].device
    elif given.get("device") is not None:
        where = as_device(given["device"])
    target = self.dtype if dtype is None else dtypes.as_dtype(dtype)
    out = self
    if target is not self.dtype:
        out = dispatch(ops.cast, (self,), {"dtype": target})
    elif given.get("copy") and where == self.device:
        out = shapes.clone(self)
    out = moved(out, where, bool(given.get("non_blocking")))
    return shapes.contiguous(out) if given.get("memory_format") is contiguous_format else out


def _is_dtype(x: Any) -> bool:
    return isinstance(x, DType) or x in (float, int, bool, complex)


def _bound(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `to` by name, checked."""
    first: Any = args[0] if args else None
    names = ("other", "non_blocking", "copy") if isinstance(first, Tensor) else (
        ("dtype", "non_blocking", "copy") if args and first is not None and _is_dtype(first)
        else ("device", "dtype", "non_blocking", "copy")
    )  # fmt: skip
    given = dict(zip(names, args, strict=False))
    sound = len(args) <= len(names) and not given.keys() & options.keys()
    given.update(options)
    sound = sound and given.keys() <= {*names, "memory_format"} and "other" not in options
    sound = sound and all(given.get(k, False) in (False, True) for k in ("non_blocking", "copy"))
    sound = sound and (given.get("dtype") is None or _is_dtype(given["dtype"]))
    place = given.get("device")
    sound = sound and (place is None or isinstance(place, str | device | int))
    words = given.get("memory_format")
    if not sound or not (words is None or isinstance(words, memory_format)):
        got = [*map(type_name, args), *(f"{k}={type_name(v)}" for k, v in options.items())]
        raise OperandError(
            f"to() received an invalid combination of arguments - got ({', '.join(got)}), but "
            f"expected one of: {_SIGNATURES}"
        )
    if words is not None:
        need_format("to", words)
    return given


def cast(name: str, dtype: DType) -> Callable[..., Tensor]:
    """The method `name`, which converts to `dtype`."""

    def method(self: Tensor, *, memory_format: Any = None) -> Tensor:
        out = to(self, dtype)
        return shapes.contiguous(out) if memory_format is contiguous_format else out

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"The tensor as {dtype.name}."
    return method


def type_text(x: Tensor) -> str:
    """`torch.FloatTensor`, or `torch.cuda.FloatTensor` on a device."""
    place = "torch." if x.device.type == "cpu" else _ON_CUDA
    return f"{place}{scalar_type_name(x.dtype)}Tensor"


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor in the dtype of `other`.

    Raises:
        OperandError: it is no tensor.
    """
    return to(self, need_tensor("type_as", "other", 1, other))


def type_(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The name of the tensor's type (`torch.FloatTensor`, `torch.cuda.FloatTensor`), or a cast to such
    a name, which says the kind of device too, or to a dtype.

    Raises:
        ParameterError: no type by that name.
        OperandError: neither a name nor a dtype.
    """
    if dtype is None:
        return type_text(self)
    if isinstance(dtype, str):
        where = as_device("cuda" if dtype.startswith(_ON_CUDA) else "cpu")
        where = self.device if where.type == self.device.type else where
        return to(self, where, named_type(dtype.replace(_ON_CUDA, "torch.", 1)))
    if hasattr(dtype, "dtype") and isinstance(dtype.dtype, DType):
        return to(self, "cpu", dtype.dtype)
    if isinstance(dtype, type):
        raise ParameterError(f"invalid type: '{dtype.__name__}'")
    if not isinstance(dtype, DType):
        raise OperandError("dtype must be a type, str, or dtype object")
    return to(self, dtypes.as_dtype(dtype))


def view(self: Tensor, *shape: Any, dtype: DType | None = None) -> Tensor:
    """The same memory under another shape, or its bits as another dtype (`view(dtype)`).

    Raises:
        ShapeError: the strides do not allow a view, or the last size does not allow the dtype.
        OperandError: sizes that are no ints.

    Example:
        >>> import tracegrad as tg
        >>> tg.ones(2).view(tg.int32)
        tensor([1065353216, 1065353216], dtype=torch.int32)
    """
    if dtype is None and len(shape) == 1 and isinstance(shape[0], DType):
        dtype = shape[0]
    if dtype is None:
        return shapes.view(self, *shape)
    target = dtypes.as_dtype(dtype)
    if target is self.dtype:
        return shapes.view(self, *self.shape)
    if state.recorder is not None:
        state.recorder.note("view(dtype)")
    have, want = self._array.itemsize, target.itemsize
    array = self._array
    if have != want:
        _check_last(self, target)
    return wrap(array.view(target.numpy), self._storage)


def _check_last(x: Tensor, target: DType) -> None:
    """Refuse a view in a dtype of another size that the last dimension does not allow."""
    have, want = x._array.itemsize, target.itemsize
    names = f"{scalar_type_name(x.dtype)} as {scalar_type_name(target)} (different element sizes)"
    if x.ndim == 0:
        raise ShapeError(f"self.dim() cannot be 0 to view {names}")
    if x._array.strides[-1] != have:
        raise ShapeError(
            f"self.stride(-1) must be 1 to view {names}, but got {x._array.strides[-1] // have}"
        )
    if want > have and x.shape[-1] % (want // have):
        raise ShapeError(
            f"self.size(-1) must be divisible by {want // have} to view {names}, but got "
            f"{x.shape[-1]}"
        )


def named_type(name: str) -> DType:
    """The dtype of `torch.DoubleTensor` and the like.

    Raises:
        ParameterError: no type by that name.
    """
    for dtype in dtypes.ALL:
        if dtype is not dtypes.uint32 and name == f"torch.{scalar_type_name(dtype)}Tensor":
            return dtype
    raise ParameterError(f"invalid type: '{name}'")
