"""Errors that users see.

Every class derives from `TracegradError` and from the built-in exception that PyTorch raises in
the same place, so `except RuntimeError` keeps working in ported code. A message names the
operation, the rule, the values it saw and the remedy. Users import them as `tracegrad.errors`.
"""

from __future__ import annotations

import threading
from typing import TypeVar


class TracegradError(Exception):
    """Base of every error raised on purpose by tracegrad."""


_Error = TypeVar("_Error", bound=TracegradError)


class _Refusals(threading.local):
    count = 0


_refusals = _Refusals()


def of_values(error: _Error) -> _Error:
    """`error`, which is about values, not shapes or dtypes: for others the run would have gone on.

    A capture asks `refusals` whether there was one that the function caught.
    """
    _refusals.count += 1
    return error


def refusals() -> int:
    """How many errors `of_values` there have been in this thread."""
    return _refusals.count


class ShapeError(TracegradError, RuntimeError):
    """Shapes do not fit the operation. Cure: reshape, transpose or expand an operand."""


class DTypeError(TracegradError, RuntimeError):
    """An operation is not defined for a dtype. Cure: cast the operand with `.to(dtype)`."""


class KernelError(DTypeError, NotImplementedError):
    """PyTorch has no kernel of an operation for a dtype. Cure: cast the operand with `.to(dtype)`."""


class DeviceError(TracegradError, RuntimeError):
    """Operands live on different devices. Cure: move one of them with `.to(device)`."""


class DimensionError(TracegradError, IndexError):
    """A dimension number or an index is out of range. Cure: use one in the range shown."""


class BoundsError(DimensionError, RuntimeError):
    """An index in a tensor of indices is out of bounds: PyTorch raises an IndexError for `x[index]`,
    a RuntimeError for `gather`. Cure: an index in the range that the text names.
    """


class OperandError(TracegradError, TypeError):
    """An operand has the wrong type, or their number is wrong. Cure: pass tensors or numbers."""


class ParameterError(TracegradError, ValueError):
    """A static parameter has a value that the operation does not accept."""


class OptionError(TracegradError, RuntimeError):
    """As `ParameterError`, where PyTorch raises a RuntimeError. Cure: a value that the text names."""


class CapsuleError(TracegradError, RuntimeError):
    """What was given does not speak DLPack. Cure: an array or tensor of a library that does."""


class ElementError(TracegradError, RuntimeError):
    """`in` asks a tensor for what is no element of any. Cure: ask for a number or a tensor."""


class ExportError(TracegradError, BufferError):
    """A tensor's memory cannot be handed to another library. Cure: `detach()`, or another dtype."""


class SeedError(TracegradError, RuntimeError):
    """A generator cannot start from what it is given. Cure: an int, or what `get_state` returned."""


class ToleranceError(TracegradError, RuntimeError):
    """A tolerance of `isclose` is negative. Cure: 0 or a positive number."""


class UnsupportedError(TracegradError, NotImplementedError):
    """A variant of an operation that does not exist. Cure: use one of those that the text names."""


class DivisionByZeroError(TracegradError, RuntimeError, ZeroDivisionError):
    """An integer is divided by zero. Cure: mask the divisor, or divide floating-point numbers."""


class NotDifferentiableError(TracegradError, RuntimeError):
    """A derivative was asked of an operation that has none. Cure: `detach()` its result."""


class NotBatchableError(TracegradError, RuntimeError):
    """An operation that has no batch rule meets a batched operand. Cure: loop over the batch."""


class GradientError(TracegradError, RuntimeError):
    """The backward pass cannot go on: wrong seed, freed graph, overwritten saved value."""


class SavedTensorError(TracegradError, AssertionError):
    """A saved value is asked for where it is not kept any more. Cure: backward inside the block."""


class ProfilerError(TracegradError, RuntimeError):
    """A profiler is opened inside another, or asked before it has ended. Cure: leave its block."""


class ModuleStateError(TracegradError, RuntimeError):
    """Saved state does not fit a module. Cure: load it into the model that it was saved from."""


class GraphError(TracegradError, AssertionError):
    """A graph breaks an invariant of the IR. This is a defect of tracegrad: please report it."""


class CaptureError(TracegradError, RuntimeError):
    """A function cannot be captured soundly. Cure: as the message says, or `backend="eager"`."""


class CompileError(TracegradError, RuntimeError):
    """The C compiler refused generated source; the message has its command, words and file."""


class CompilerNotFound(CompileError):
    """There is no C compiler. Cure: install gcc or clang, or set `CC`; until then runs are eager."""


class AcceleratorError(TracegradError, RuntimeError):
    """A CUDA call failed, or there is no CUDA. Cure: as the message says; after a fault inside a
    kernel the device is of no more use to this process.

    Example:
        >>> issubclass(AcceleratorError, RuntimeError)
        True
    """


class NaNError(TracegradError, FloatingPointError):
    """An operation made a NaN of numbers, in a function compiled with `debug=True`. Cure: at the line
    that the message names.

    Example:
        >>> issubclass(NaNError, FloatingPointError)
        True
    """


class OutOfMemoryError(TracegradError, RuntimeError):
    """A device has no memory left. Cure: smaller batches, or drop tensors that are not needed.

    Example:
        >>> issubclass(OutOfMemoryError, RuntimeError)
        True
    """
