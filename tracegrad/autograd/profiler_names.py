"""What the profiler calls what runs: PyTorch's names of operations, and the public function around.

The dispatcher sees primitives. A public function that is composed of several, `softmax` say, is
found on the stack of the call, by the code object of its frame: looking there costs time only while
a profile is open. Start reading at `public_call`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any

from tracegrad.ir.primitive import Primitive
from tracegrad.tracer import (
    gathering,
    inplace_methods,
    inplace_moves,
    joining,
    linalg,
    pointwise,
    queries,
    reductions,
    regions,
    shapes,
    updates,
)
from tracegrad.tracer import random_factories as random
from tracegrad.tracer.modules import is_user_frame

ATEN_NAMES = {
    "broadcast": "expand", "cast": "to", "concat": "cat", "conv": "convolution",
    "dot_general": "matmul", "equal": "eq", "gather": "index", "greater": "gt",
    "greater_equal": "ge", "iota": "arange", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "random_bernoulli": "bernoulli", "random_normal": "randn", "random_randint": "randint",
    "random_uniform": "rand",
    "reduce_all": "all", "reduce_any": "any", "reduce_max": "amax", "reduce_min": "amin",
    "reduce_prod": "prod", "reduce_sum": "sum",
}  # fmt: skip
"""Where PyTorch's name of an operation is not the primitive's."""

FUNCTION_NAMES = {
    "cross_entropy": "cross_entropy_loss", "nll_loss": "nll_loss_nd", "norm": "linalg_vector_norm",
}  # fmt: skip
"""Where PyTorch's profiler has another name for a function than its users."""

TABLES = (pointwise, reductions, shapes, joining, linalg, gathering, random, updates, regions,
          queries)  # fmt: skip
FILLS = (*random.FILLS, "geometric_", "cauchy_", "log_normal_")
"""In-place functions that are composed of several; the others are one operation."""
NEURAL = "tracegrad.nn.functional"

_functions: dict[CodeType, list[FunctionType]] = {}  # those made by one factory share their code
_loaded: list[str] = []  # of the modules whose functions are listed only once they are there


def aten_name(op: Primitive) -> str:
    """How PyTorch's profiler calls an operation.

    Example:
        >>> from tracegrad.ir import ops
        >>> aten_name(ops.reduce_sum)
        'aten::sum'
    """
    return "aten::" + ATEN_NAMES.get(op.name, op.name)


def users_operands(op: Primitive, operands: Sequence[Any]) -> Sequence[Any]:
    """The operands that a user knows of: not the state of the generator."""
    return operands[1:] if op.family == "random" else operands


def flops(op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], size: int) -> int:
    """Floating-point operations of products, convolutions, additions and multiplications.

    Args:
        operands: tensors or IR values; size: number of elements of the result.
    """
    if op.name in ("add", "mul"):
        return size
    if op.name == "dot_general":
        inner = 1
        for axis in params["contract"][0]:
            inner *= operands[0].shape[axis]
        return 2 * size * inner
    if op.name == "conv":
        inner = 1
        for n in operands[1].shape[1:]:
            inner *= n
        return 2 * size * inner
    return 0


def public_call(frame: FrameType | None) -> tuple[str, FrameType] | None:
    """The outermost public function between a frame of tracegrad and the user's code.

    Returns:
        Its name, `aten::softmax`, and its frame; None where there is none.
    """
    functions = _public()
    found = None
    while frame is not None and not is_user_frame(frame):
        candidates = functions.get(frame.f_code)
        if candidates is not None:
            name = _name_of(candidates, frame)
            found = ("aten::" + FUNCTION_NAMES.get(name, name), frame)
        frame = frame.f_back
    return found


def _name_of(candidates: Sequence[FunctionType], frame: FrameType) -> str:
    """The function that a frame runs; those with the same code differ in what they close over."""
    if len(candidates) > 1:
        values = frame.f_locals
        free = frame.f_code.co_freevars
        for function in candidates:
            cells = function.__closure__ or ()
            if all(values.get(n) is c.cell_contents for n, c in zip(free, cells, strict=True)):
                return function.__name__
    return candidates[0].__name__


def _public() -> dict[CodeType, list[FunctionType]]:
    """Public functions by code; those of `nn.functional` once the user has loaded it."""
    if not _functions or (not _loaded and NEURAL in sys.modules):
        for function in map(inspect.unwrap, _public_functions()):
            if isinstance(function, FunctionType):
                alike = _functions.setdefault(function.__code__, [])
                if function not in alike:
                    alike.append(function)
        if NEURAL in sys.modules:
            _loaded.append(NEURAL)
    return _functions


def _public_functions() -> Iterator[Any]:
    for module in TABLES:
        yield from module.FUNCTIONS.values()
    yield from inplace_moves.METHODS.values()
    yield from (inplace_methods.INPLACE_FUNCTIONS[name] for name in FILLS)
    neural = sys.modules.get(NEURAL)
    for name in getattr(neural, "__all__", ()):
        yield getattr(neural, name)
