"""Python's operators in terms of the table; the common base of `Value` and `Tensor`.

The names are looked up in the table at call time, so this module needs no family to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracegrad.ir.primitive import TABLE, is_scalar


def _operand(x: Any) -> bool:
    return is_scalar(x) or hasattr(type(x), "__tracegrad_bind__")


def _binary(name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return TABLE[name](self, other) if _operand(other) else NotImplemented

    return method


def _reflected(name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return TABLE[name](other, self) if _operand(other) else NotImplemented

    return method


def _unary(name: str) -> Callable[[Any], Any]:
    return lambda self: TABLE[name](self)


class Operators:
    """Arithmetic, bitwise and ordering operators. `==` and `!=` are left to the subclass."""

    __slots__ = ()

    __add__, __radd__ = _binary("add"), _reflected("add")
    __sub__, __rsub__ = _binary("sub"), _reflected("sub")
    __mul__, __rmul__ = _binary("mul"), _reflected("mul")
    __truediv__, __rtruediv__ = _binary("div"), _reflected("div")
    __floordiv__, __rfloordiv__ = _binary("floor_divide"), _reflected("floor_divide")
    __mod__, __rmod__ = _binary("remainder"), _reflected("remainder")
    __pow__, __rpow__ = _binary("pow"), _reflected("pow")
    __and__, __rand__ = _binary("bitwise_and"), _reflected("bitwise_and")
    __or__, __ror__ = _binary("bitwise_or"), _reflected("bitwise_or")
    __xor__, __rxor__ = _binary("bitwise_xor"), _reflected("bitwise_xor")
    __lshift__, __rlshift__ = _binary("bitwise_left_shift"), _reflected("bitwise_left_shift")
    __rshift__, __rrshift__ = _binary("bitwise_right_shift"), _reflected("bitwise_right_shift")
    __lt__, __le__ = _binary("less"), _binary("less_equal")
    __gt__, __ge__ = _binary("greater"), _binary("greater_equal")
    __neg__ = _unary("neg")
    __abs__ = _unary("abs")
    __invert__ = _unary("bitwise_not")

    def __pos__(self) -> Any:
        return self
