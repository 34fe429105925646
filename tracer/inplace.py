"""In-place operations: compute functionally, write, bump the version, move the history.

`x.op_(...)` is `x.op(...)` followed by a write of the value into x's memory, so gradients are
right by construction: where the functional operation keeps x for its backward, it is given a copy.
What has no sound meaning is refused with PyTorch's words. Start reading at `apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DeviceError, DTypeError, GradientError, ShapeError
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.types import TensorType, broadcast_shapes
from tracegrad.tracer import tape
from tracegrad.tracer.array_rules import zeros_of
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.moving import moved
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import Transform, announce, before_write, made_in
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor, literal, wrap
from tracegrad.tracer.views import rebase, refusal

_LEAF = "a leaf Variable that requires grad is being used in an in-place operation."
_VIEW_OF_LEAF = (
    "a view of a leaf Variable that requires grad is being used in an in-place operation."
)
_INFERENCE = (
    "Inplace update to inference tensor outside InferenceMode is not allowed.You can make a clone "
    "to get a normal tensor before doing inplace update.See "
    "https://github.com/pytorch/rfcs/pull/17 for more details."
)
_CAPTURED = (
    "During a grad (vjp, jvp, grad, etc) transform, the function provided attempted to call "
    "in-place operation (aten::{}) that would mutate a captured Tensor. This is not supported; "
    "please rewrite the function being transformed to explicitly accept the mutated Tensor(s) as "
    "inputs."
)
_OVERLOADS = dict.fromkeys(("add_", "sub_", "mul_", "div_"), ".Tensor")
_OVERLAP = (
    "unsupported operation: more than one element of the written-to tensor refers to a single "
    "memory location. Please clone() the tensor before performing the operation."
)


_SHARED = (
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a "
    "single memory location. Please clone() the tensor before performing the operation."
)


def tracked(*operands: Any) -> bool:
    """True under grad mode where one of `operands` is a tensor that requires grad."""
    return state.grad_enabled and any(isinstance(x, Tensor) and x.requires_grad for x in operands)


def check_history(target: Tensor, *operands: Any) -> None:
    """Refuse writes that autograd cannot follow; only where the write would be recorded.

    Args:
        operands: what the new value is computed from, beside the target.
    Raises:
        GradientError: `target` is a leaf that requires grad (or a view of one), or a view that was
            made under `no_grad()` or by a function that returns several views.
    """
    if not tracked(target, *operands):
        return
    view = target._view
    if view is not None:
        if view.made:
            raise refusal(target, view.made, indirect=False)
        if target.requires_grad and view.base.is_leaf:
            raise GradientError(_VIEW_OF_LEAF)
    if target.requires_grad and target.is_leaf:
        raise GradientError(_LEAF)


def check_writable(target: Tensor, *operands: Any, name: str = "copy_") -> None:
    """Refuse writes that autograd or the memory layout does not allow.

    Args:
        name: of the in-place operation, for messages.
    Raises:
        GradientError: see `check_history`.
        ShapeError: several elements of `target` share memory (an expanded tensor).
    """
    check_history(target, *operands)
    check_layout(target, name)


def check_layout(target: Tensor, name: str = "copy_") -> None:
    """Refuse to write where elements share memory, or where the memory is not ours to write.

    Raises:
        GradientError: see `check_mode`.
        ShapeError: as above.
    """
    check_mode(target, name)
    array = target._array
    if array.size > 1 and overlaps_itself(array):
        raise ShapeError(_OVERLAP)
    if not array.flags.writeable:
        make_writeable(array)


def check_mode(target: Tensor, name: str = "copy_") -> None:
    """Refuse to change what the mode or a transform does not allow to be changed.

    Raises:
        GradientError: an inference tensor, outside inference mode; a tensor from outside of the
            innermost transform that differentiates (of `func`), but for its arguments.
    """
    if target._storage.inference:
        if not state.inference:
            raise GradientError(_INFERENCE)
    elif state.transform is not None and _is_captured(target, state.transform):
        raise GradientError(_CAPTURED.format(name + _OVERLOADS.get(name, "")))


def _is_captured(target: Tensor, transform: Transform) -> bool:
    """Whether a tensor comes from outside of a transform, and is none of its arguments."""
    memory = target._storage.memory
    if made_in(memory) is transform or any(memory is s for s in transform.others):
        return False
    view = target._view
    for x in transform.inputs:  # over the memory of the arguments, as others outside may be
        if x is target or (view is not None and view.base is x):
            return False
        if view is not None and x._view is not None:
            last = x._view.steps[-1] if x._view.steps else None
            if any(step is last for step in view.chain):
                return False
    return True


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether two elements lie at one place: expanded (stride 0), or windows that overlap."""
    flags = array.flags
    if flags.c_contiguous or flags.f_contiguous:
        return False
    sizes = sorted((s, n) for s, n in zip(array.strides, array.shape) if n > 1)
    reach = 0  # bytes between the first and the last element of the dimensions so far
    for stride, n in sizes:
        if stride <= reach or stride == 0:
            return stride == 0 or array.size > len(np.unique(_offsets(array)))
        reach += stride * (n - 1)
    return False


def _offsets(array: np.ndarray) -> np.ndarray:
    places = np.zeros(array.shape, np.int64)
    for axis, (stride, n) in enumerate(zip(array.strides, array.shape)):
        places += (np.arange(n) * stride).reshape((-1,) + (1,) * (array.ndim - axis - 1))
    return places


def make_writeable(array: np.ndarray) -> None:
    """Undo the protection that NumPy puts on broadcast and diagonal views of writable memory."""
    try:
        array.flags.writeable = True
    except ValueError:
        raise ShapeError(
            "cannot write in place: the memory is read-only; clone() the tensor first"
        ) from None


def check_apart(target: Tensor, operands: Iterable[Any], same: bool = True) -> None:
    """Refuse operands that share some memory with the target, but not element for element.

    Args:
        same: whether an operand may be exactly the target's memory.
    Raises:
        ShapeError: an operand overlaps the target (PyTorch's text).
    """
    memory = target._storage.memory
    for x in operands:
        if isinstance(x, Tensor) and x._storage.memory is memory and _overlap(target, x, same):
            raise ShapeError(_SHARED)


def _overlap(target: Tensor, other: Tensor, same: bool) -> bool:
    a, b = target._array, other._array
    if other is target or a is b:
        return not same
    if not (a.size and b.size and is_dense(a) and is_dense(b)):
        return False  # the new value is complete before it is written, so it is as if cloned
    first, start = target._ptr(), other._ptr()
    if (first, a.nbytes) == (start, b.nbytes):
        return not same or a.strides != b.strides
    return first < start + b.nbytes and start < first + a.nbytes


def is_dense(array: np.ndarray) -> bool:
    """Whether the elements fill a stretch of memory, each once, in some order of dimensions."""
    step = array.itemsize
    for stride, n in sorted((s, n) for s, n in zip(array.strides, array.shape) if n > 1):
        if stride != step:
            return False
        step *= n
    return True


_WITHOUT_OVERLAP = frozenset("index_put_ scatter_ scatter_add_ index_add_ index_copy_".split())
_ANY_OVERLAP = frozenset(
    "masked_fill_ masked_scatter_ addmm_ addmv_ addr_ addbmm_ baddbmm_".split()
)


def apply(
    name: str, target: Tensor, compute: Callable[..., Any], *operands: Any, **params: Any
) -> Tensor:
    """`target[...] = compute(target, *operands, **params)`, differentiably; returns `target`.

    Args:
        name: the in-place operation's name, e.g. `add_`, for messages.
        compute: the functional operation.
    Raises:
        DTypeError: the result's dtype is of a higher category than the target's.
        ShapeError: the result's shape is not the target's.
    """
    if profilers and state.profiler is not None:
        return state.profiler.inplace(apply, name, target, compute, operands, params)
    recorded = tracked(target, *operands, *params.values())
    if recorded:
        check_history(target, *operands, *params.values())
    check_layout(target, name)
    if operands and name not in _ANY_OVERLAP and name not in _WITHOUT_OVERLAP:
        check_apart(target, operands)  # the writes at indices check what they compute first
    source = target
    in_batches = state.recorder is not None and state.recorder.varies(target)
    if recorded or in_batches:  # what a backward needs of it, that of all examples too, must stay
        source = _twin(target)
        operands = tuple(source if x is target else x for x in operands)
    elif state.recorder is None and not params and _directly(name, target, *operands):
        return target
    value = _fitted(target, compute(source, *operands, **params))
    if name in _WITHOUT_OVERLAP:
        check_apart(target, operands, same=False)
    if recorded and name in _COMPARISONS and not value._requires_grad:
        tensors = tuple(x for x in operands if isinstance(x, Tensor))
        label = _COMPARISONS[name]
        label += "0" if label.startswith("Logical") else str(len(tensors))
        return write(name, target, value, label, tensors)
    return write(name, target, value)


_COMPARISONS = {
    f"{name}_": f"{short[0].upper()}{short[1:]}Backward"
    for short, names in (
        ("eq", "eq"), ("ne", "ne not_equal"), ("lt", "lt less"), ("le", "le less_equal"),
        ("gt", "gt greater"), ("ge", "ge greater_equal"), ("LogicalAnd", "logical_and"),
        ("LogicalOr", "logical_or"), ("LogicalXor", "logical_xor"),
    )
    for name in names.split()
}  # fmt: skip
"""Their results depend on both operands, with derivatives that are zero."""

_UFUNCS = {"add_": np.add, "sub_": np.subtract, "mul_": np.multiply, "div_": np.divide}


def _directly(name: str, target: Tensor, *operands: Any) -> bool:
    """Let NumPy write the result of plain arithmetic where it belongs; False if it is not plain."""
    ufunc = _UFUNCS.get(name)
    array = target._array
    if ufunc is None or len(operands) != 1 or array.dtype not in (np.float32, np.float64):
        return False
    other = operands[0]
    if isinstance(other, Tensor):
        number = other._array
        if number.dtype != array.dtype or number.shape != array.shape:
            return False
    elif type(other) in (int, float) and abs(other) < 1e38:
        number = array.dtype.type(other)
    else:
        return False
    if before_write:
        announce(target._storage)
    with np.errstate(all="ignore"):
        ufunc(array, number, out=array)
    target._storage.bump(name)
    return True


_LABELS = {
    "copy_": "CopyBackwards", "fill_": "FillBackward3", "bernoulli_": "BernoulliBackward2",
    "random_": "RandomBackward2",
}  # fmt: skip
_TAKES_VALUE = ("CopyBackwards", "FillBackward3")


class Overwrite(tape.BackwardNode):
    """The backward of a write whose value does not depend on what the memory held before.

    Edges: the old history, and, where a tensor was written, its own; or, of a comparison, those of
    what the memory was compared with, for which the derivative is zero.
    """

    __slots__ = ("label", "compared")

    def __init__(
        self, label: str, edges: tuple[tape.Edge, ...], target: Tensor,
        compared: tuple[TensorType, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(edges, (target.type_info,))
        self.label = label
        self.compared = compared

    def name(self) -> str:
        """PyTorch's name."""
        return f"torch::autograd::{self.label}" if self.label == "CopyBackwards" else self.label

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Zeros for what the memory held before; the cotangent itself for the new value."""
        ct = cotangents[0]
        assert ct is not None, "the engine runs a node with one output only with its cotangent"
        old = None
        if self.edges[0][0] is not None:
            old = literal(np.zeros(ct._array.shape, ct.dtype.numpy), ct)
        if self.compared:
            return [old, *(literal(zeros_of(t)) for t in self.compared)]
        return [old, ct][: len(self.edges)]


def _new_history(
    name: str, label: str, target: Tensor, value: Tensor, compared: Sequence[Tensor]
) -> Tensor:
    """What carries the history that `target` has after `value` was written to it."""
    label = label or _LABELS.get(name) or f"{name.strip('_').title().replace('_', '')}Backward0"
    keeps = value._requires_grad and label not in _TAKES_VALUE
    if keeps or target._view is not None:
        return value
    edges = [tape.gradient_edge(target)]
    if label in _TAKES_VALUE:
        edges.append(tape.gradient_edge(value))
    edges += [tape.gradient_edge(x) for x in compared]
    carrier = wrap(value._array)
    types = tuple(x.type_info for x in compared)
    tape.attach(Overwrite(label, tuple(edges), target, types), (carrier,))
    return carrier


def _twin(target: Tensor) -> Tensor:
    """A copy of `target` with its history, for rules that need the value before the write."""
    twin = wrap(target._array.copy())
    twin._requires_grad = target._requires_grad
    twin._grad_fn, twin._output_nr = target._grad_fn, target._output_nr
    if state.recorder is not None:
        state.recorder.record(TABLE["cast"], (target,), {"dtype": target.dtype}, twin)
    return twin


def copy(target: Tensor, source: Tensor) -> Tensor:
    """Write `source`, cast and broadcast, to `target`: what `copy_` and assignment do."""
    if profilers and state.profiler is not None:
        return listed("copy_", target, source, lambda: copy(target, source))
    check_writable(target, source)
    check_apart(target, (source,))
    if source.device != target.device:
        source = moved(source, target.device)
    if source.dtype is not target.dtype:
        source = dispatch(TABLE["cast"], (source,), {"dtype": target.dtype})
    return write("copy_", target, source)


def fill(target: Tensor, number: Tensor) -> Tensor:
    """Write a number of the dtype of `target` to all of it: what assignment of a number does."""
    if profilers and state.profiler is not None:
        return listed("fill_", target, number, lambda: fill(target, number))
    check_writable(target, number)
    return write("fill_", target, number)


def listed(name: str, target: Tensor, value: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """`run()`, which writes `value` to `target`, as an operation of this thread's profiler."""
    assert state.profiler is not None, "there is one"
    return state.profiler.inplace(lambda *given: run(), name, target, run, (value,), {})


def write(
    name: str, target: Tensor, value: Tensor, label: str = "", compared: Sequence[Tensor] = ()
) -> Tensor:
    """Put `value` (cast, and broadcast if it must) into `target`'s memory with its history.

    Args:
        name: of the in-place operation, for messages.
        label: name of the node where the value does not depend on the old one; by default made
            from `name`.
        compared: tensors on which the value depends with a derivative of zero.
    """
    value = _fitted(target, value)
    check_device(target, value)
    recorded = tracked(target, value, *compared)
    was_tracked = recorded and target.requires_grad
    history = _new_history(name, label, target, value, compared) if recorded else value
    if state.recorder is not None:
        state.recorder.check_write(name, target, value)
    if before_write:
        announce(target._storage)
    target._array[...] = value._array
    target._storage.bump(name)
    if recorded:
        rebase(target, history)
    if state.recorder is not None:
        if history is not value and was_tracked:  # the old history gets a gradient of zeros
            state.recorder.record(TABLE["where"], (np.True_, value, target), {}, history)
            value = history
        state.recorder.record_inplace(name, target, value)
    return target


def check_device(target: Tensor, value: Tensor) -> None:
    """Refuse to put what a device computed into memory elsewhere (PyTorch's text)."""
    place = value.device
    if place.type != "cpu" and target.device != place:
        raise DeviceError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{place} and {target.device}!"
        )


def _fitted(target: Tensor, value: Tensor) -> Tensor:
    have, want = value.dtype, target.dtype
    if have is not want:
        check_cast(have, want)
        value = dispatch(TABLE["cast"], (value,), {"dtype": want})
    shape = target._array.shape
    if value._array.shape != shape:
        if broadcast_shapes(shape, value._array.shape) != shape:
            raise ShapeError(
                f"output with shape {list(shape)} doesn't match the broadcast shape "
                f"{list(value._array.shape)}"
            )
        value = dispatch(TABLE["broadcast"], (value,), {"shape": shape})
    return value


def check_cast(have: DType, want: DType) -> None:
    """Refuse to store a higher category into a lower one (PyTorch's text)."""
    if have.category > want.category:
        raise DTypeError(
            f"result type {scalar_type_name(have)} can't be cast to the desired output type "
            f"{scalar_type_name(want)}"
        )
