"""Element types and PyTorch's rules of type promotion.

A `DType` is a singleton that knows its NumPy twin and its C names. Python scalars are *weak*:
they lift the category of a result (bool < integer < float) but never its width.
Start reading at `DType`, then `promote`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tracegrad.ir.errors import DTypeError, OperandError


class DType:
    """One element type.

    Attributes:
        name: `"float32"`; also how the type prints, with `torch.` before it, as in PyTorch.
        kind: `"b"` bool, `"u"` unsigned, `"i"` signed, `"f"` floating.
        itemsize: bytes per element.
        c_type: the C type of one element in memory.
        c_compute: the C type in which generated code computes with it.
    """

    __slots__ = ("name", "kind", "itemsize", "c_type", "c_compute", "_numpy")

    def __init__(
        self, name: str, kind: str, itemsize: int, c_type: str, c_compute: str = ""
    ) -> None:
        self.name = name
        self.kind = kind
        self.itemsize = itemsize
        self.c_type = c_type
        self.c_compute = c_compute or c_type
        self._numpy: np.dtype[Any] | None = None

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype (bfloat16 comes from ml_dtypes, loaded on first use)."""
        if self._numpy is None:
            if self.name == "bfloat16":
                import ml_dtypes

                self._numpy = np.dtype(ml_dtypes.bfloat16)
            else:
                self._numpy = np.dtype(self.name)
        return self._numpy

    @property
    def is_floating_point(self) -> bool:
        """True for float16, bfloat16, float32 and float64."""
        return self.kind == "f"

    @property
    def is_complex(self) -> bool:
        """True for the complex types, which exist by name only: tensors cannot have them."""
        return self.kind == "c"

    @property
    def is_signed(self) -> bool:
        """True for floating and signed integer types."""
        return self.kind in "ifc"

    def to_real(self) -> DType:
        """The type of the real part: a real type itself."""
        if self.kind != "c":
            return self
        return {"complex32": float16, "complex64": float32, "complex128": float64}[self.name]

    def to_complex(self) -> DType:
        """The complex type of the same precision.

        Raises:
            DTypeError: it has none.
        """
        if self.kind == "c":
            return self
        if self.kind != "f":
            word = {"bool": "Bool", "uint8": "Byte", "int8": "Char", "int16": "Short",
                    "int32": "Int", "int64": "Long"}.get(self.name, self.name)  # fmt: skip
            raise DTypeError(f"Unknown Complex ScalarType for {word}")
        return {"float16": complex32, "float64": complex128}.get(self.name, complex64)

    @property
    def category(self) -> int:
        """0 bool, 1 integer, 2 floating: the order in which promotion compares."""
        return 0 if self.kind == "b" else 2 if self.kind == "f" else 1

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __str__(self) -> str:
        return self.__repr__()

    def __reduce__(self) -> tuple[Any, ...]:
        return (by_name, (self.name,))


bool_ = DType("bool", "b", 1, "uint8_t")
uint8 = DType("uint8", "u", 1, "uint8_t")
int8 = DType("int8", "i", 1, "int8_t")
int16 = DType("int16", "i", 2, "int16_t")
int32 = DType("int32", "i", 4, "int32_t")
int64 = DType("int64", "i", 8, "int64_t")
uint32 = DType("uint32", "u", 4, "uint32_t")  # random bits only; takes no part in promotion
float16 = DType("float16", "f", 2, "uint16_t", "float")
bfloat16 = DType("bfloat16", "f", 2, "uint16_t", "float")
float32 = DType("float32", "f", 4, "float")
float64 = DType("float64", "f", 8, "double")

# Names for ported code to compare with; `as_dtype` refuses them.
complex32 = DType("complex32", "c", 4, "")
complex64 = DType("complex64", "c", 8, "")
complex128 = DType("complex128", "c", 16, "")
COMPLEX: tuple[DType, ...] = (complex32, complex64, complex128)

ALL: tuple[DType, ...] = (
    bool_, uint8, int8, int16, int32, int64, uint32, float16, bfloat16, float32, float64,
)  # fmt: skip
INTEGERS: tuple[DType, ...] = (uint8, int8, int16, int32, int64)
FLOATS: tuple[DType, ...] = (float16, bfloat16, float32, float64)

_BY_NAME = {d.name: d for d in ALL}
_ALIASES = {"float": float32, "double": float64, "half": float16, "int": int32, "long": int64,
            "short": int16}  # fmt: skip
default: list[DType] = [float32]


def by_name(name: str) -> DType:
    """The dtype called `name`, e.g. `"float32"`."""
    found = _BY_NAME.get(name)
    return found if found is not None else next(d for d in COMPLEX if d.name == name)


def complex_refused(what: str) -> DTypeError:
    """The error for `what`, which is complex."""
    return DTypeError(
        f"{what} is complex, and complex tensors are not supported yet; keep the real and the "
        "imaginary part in two real tensors"
    )


def as_dtype(spec: Any) -> DType:
    """Turn a DType, a NumPy dtype, a Python type or a name into a DType.

    Raises:
        DTypeError: nothing by that name exists here (complex types, for example).
    """
    if isinstance(spec, DType):
        if spec.kind == "c":
            raise complex_refused(f"dtype {spec}")
        return spec
    if spec is complex:
        raise complex_refused("dtype complex")
    if spec is float:
        return float64
    if spec is int:
        return int64
    if spec is bool:
        return bool_
    if isinstance(spec, str) and spec in _ALIASES:
        return _ALIASES[spec]
    try:
        name = np.dtype(spec).name
    except TypeError:
        name = str(spec)
    found = _BY_NAME.get(name)
    if found is None:
        known = ", ".join(_BY_NAME)
        raise DTypeError(f"dtype {spec!r} is not supported; choose one of {known}")
    return found


def from_numpy(dtype: np.dtype[Any]) -> DType:
    """The DType whose NumPy twin is `dtype`.

    Raises:
        DTypeError: NumPy's type is complex.
        OperandError: it has no twin here for another reason.
    """
    found = _BY_NAME.get(dtype.name)
    if found is not None:
        return found
    if dtype.kind == "c":
        raise complex_refused(f"a NumPy array of type {dtype}")
    raise OperandError(
        f"can't convert np.ndarray of type numpy.{dtype.type.__name__}. The only supported types "
        "are: float64, float32, float16, int64, int32, int16, int8, uint8, and bool."
    )


def get_default_dtype() -> DType:
    """The dtype of new floating tensors and of integer operands of `sin` and the like."""
    return default[0]


def set_default_dtype(dtype: Any) -> None:
    """Set the default floating dtype (float32 at start).

    Raises:
        OperandError: `dtype` is no dtype, or not a floating one.
    """
    if not isinstance(dtype, DType):
        raise OperandError(
            "invalid dtype object: only floating-point types are supported as the default type"
        )
    if not dtype.is_floating_point:
        raise OperandError("only floating-point types are supported as the default type")
    default[0] = dtype


def scalar_dtype(value: bool | int | float) -> DType:
    """The dtype that a Python scalar has when nothing stronger is there."""
    if isinstance(value, bool):
        return bool_
    if isinstance(value, int):
        return int64
    return default[0]


def promote_pair(a: DType, b: DType) -> DType:
    """PyTorch's promotion of two array dtypes (its documented table)."""
    if a is b:
        return a
    if a.category != b.category:
        return a if a.category > b.category else b
    if a.kind == "f":
        if {a, b} == {float16, bfloat16}:
            return float32
        return a if a.itemsize > b.itemsize else b
    # Two different integer types: uint8 with any signed type gives a signed type that holds both.
    if "u" in (a.kind, b.kind):
        signed = b if a.kind == "u" else a
        return int16 if signed is int8 else signed
    return a if a.itemsize > b.itemsize else b


def promote(operands: Iterable[tuple[DType, int | None]]) -> DType:
    """Result dtype of an operation, by PyTorch's three priorities.

    Args:
        operands: one `(dtype, ndim)` per operand; `ndim` is None for a Python scalar.
            Dimensioned tensors decide; a 0-d tensor, then a scalar, counts only where its
            category is higher.
    """
    dimensioned: DType | None = None
    zero_dim: DType | None = None
    scalar: DType | None = None
    for dtype, ndim in operands:
        if ndim is None:
            scalar = dtype if scalar is None else promote_pair(scalar, dtype)
        elif ndim == 0:
            zero_dim = dtype if zero_dim is None else promote_pair(zero_dim, dtype)
        else:
            dimensioned = dtype if dimensioned is None else promote_pair(dimensioned, dtype)
    result: DType | None = None
    for level in (dimensioned, zero_dim, scalar):
        if level is not None and (result is None or level.category > result.category):
            # A weak scalar brings its category at the default width.
            result = level
    assert result is not None, "promote() needs at least one operand"
    return result


_TORCH_NAMES = {
    "bool": "Bool", "uint8": "Byte", "int8": "Char", "int16": "Short", "int32": "Int",
    "int64": "Long",
    "float16": "Half", "bfloat16": "BFloat16", "float32": "Float", "float64": "Double",
}  # fmt: skip


def torch_name(dtype: DType) -> str:
    """The word that PyTorch's messages use for a dtype: `Long` for int64."""
    return _TORCH_NAMES.get(dtype.name, dtype.name)
