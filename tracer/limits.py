"""`finfo` and `iinfo`: the limits of dtypes. Start reading at `finfo`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError
from tracegrad.tracer.arguments import missing, wrong_type

_ABSENT: Any = object()
# digits that survive a round trip from decimal, as powers of ten; bfloat16 is unknown to NumPy
_RESOLUTION = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-15}
_BFLOAT16 = {"eps": 2.0**-7, "max": 3.3895313892515355e38, "smallest_normal": 2.0**-126}


class _Limits:
    """What both have: a dtype, by which they are equal, and no attributes but the listed."""

    __slots__ = ("bits", "dtype", "max", "min")
    bits: int
    dtype: str
    max: Any
    min: Any

    def __init__(self, dtype: DType) -> None:
        self.bits = 8 * dtype.itemsize
        self.dtype = dtype.name

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.dtype == self.dtype

    def __hash__(self) -> int:
        return hash((type(self), self.dtype))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'torch.{type(self).__name__}' object has no attribute '{name}'")


def _dtype(function: str, given: Any) -> DType:
    if not isinstance(given, DType) and given not in (float, int, bool, complex):
        raise wrong_type(function, "type", 1, "torch.dtype", given)
    return dtypes.as_dtype(given)


class finfo(_Limits):
    """Limits of a floating dtype (the default one if none is given).

    Attributes: `bits`, `eps`, `max`, `min`, `tiny` (also `smallest_normal`), `resolution`, `dtype`.

    Raises:
        OperandError: not a floating dtype.

    Example:
        >>> import tracegrad as tg
        >>> tg.finfo(tg.float16).max
        65504.0
    """

    __slots__ = ("eps", "resolution", "smallest_normal", "tiny")
    eps: float
    resolution: float
    smallest_normal: float
    tiny: float

    def __init__(self, type: Any = _ABSENT) -> None:
        found = dtypes.get_default_dtype() if type is _ABSENT else _dtype("finfo", type)
        if not found.is_floating_point:
            raise OperandError(
                "torch.finfo() requires a floating point input type. Use torch.iinfo to handle "
                "'torch.finfo'"
            )
        super().__init__(found)
        known: Any = np.finfo(found.numpy) if found is not dtypes.bfloat16 else None
        for name, value in _BFLOAT16.items():
            setattr(self, name, value if known is None else float(getattr(known, name)))
        self.min = -self.max
        self.tiny = self.smallest_normal
        self.resolution = _RESOLUTION[found.name]

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, "
            f"eps={self.eps:g}, smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, "
            f"dtype={self.dtype})"
        )


class iinfo(_Limits):
    """Limits of an integer dtype. Attributes: `bits`, `max`, `min`, `dtype`.

    Raises:
        OperandError: not an integer dtype.

    Example:
        >>> import tracegrad as tg
        >>> tg.iinfo(tg.int8).min
        -128
    """

    __slots__ = ()

    def __init__(self, type: Any = _ABSENT) -> None:
        if type is _ABSENT:
            raise missing("iinfo", "type")
        found = _dtype("iinfo", type)
        if found.category != 1:
            if found.kind == "b":
                raise OperandError(f"{found} is not supported by torch.iinfo")
            raise OperandError(
                "torch.iinfo() requires an integer input type. Use torch.finfo to handle "
                "'torch.iinfo'"
            )
        super().__init__(found)
        known = np.iinfo(found.numpy)
        self.max, self.min = int(known.max), int(known.min)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min:g}, max={self.max:g}, dtype={self.dtype})"
