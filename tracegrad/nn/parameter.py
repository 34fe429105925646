"""`Parameter`: a leaf tensor that a module counts among its weights.

Assigning one to an attribute of a `Module` registers it. Start reading at `Parameter`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.ir.primitive import TABLE
from tracegrad.tracer.factories import empty
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, _fill, wrap


class Parameter(Tensor):
    """A tensor that is a weight of a module.

    Args:
        data: a tensor, whose memory is shared; None for an empty one.
        requires_grad: whether gradients are computed for it.
    Raises:
        OperandError: `data` is no tensor.
        GradientError: gradients are asked for, and the dtype is not floating.
    Source: PyTorch documentation, `torch.nn.Parameter`.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.Parameter(tg.zeros(2))
        Parameter containing:
        tensor([0., 0.], requires_grad=True)
    """

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> Parameter:
        """A new leaf over the memory of `data`."""
        if data is None:
            data = empty(0)
        if not isinstance(data, Tensor):
            raise OperandError(
                f"Parameter(): data must be a Tensor, not {type(data).__name__}; use tensor(data)"
            )
        if requires_grad and not data.dtype.is_floating_point:
            raise GradientError(
                "Only Tensors of floating point and complex dtype can require gradients"
            )
        made: Parameter = object.__new__(cls)
        _fill(made, data._array, data._storage)
        if state.recorder is not None:
            state.recorder.record(TABLE["detach"], (data,), {}, made)
        made._requires_grad = bool(requires_grad)
        return made

    def __repr__(self) -> str:
        return "Parameter containing:\n" + Tensor.__repr__(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        if id(self) in memo:
            return memo[id(self)]
        made = type(self)(self.data.clone(), self.requires_grad)
        made.__dict__.update(self.__dict__)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        array = self._array.copy(order="C")
        return (_rebuild, (type(self), array, self.requires_grad, dict(self.__dict__)))


def _rebuild(
    cls: type[Parameter], array: np.ndarray, requires_grad: bool, attributes: dict[str, Any]
) -> Parameter:
    made = cls(wrap(array), requires_grad)
    made.__dict__.update(attributes)
    return made
