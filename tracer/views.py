"""In-place writes that autograd has to know of: how history moves when memory changes.

A view knows its base and the chain of movement operations between them. After a write through a
view, the base's history becomes a `CopySlices` node (the written region takes its cotangent from
the new value, the rest from the old base), and every other view of that base makes its `grad_fn`
anew, from its chain, when it is next asked. Start reading at `rebase`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import GradientError
from tracegrad.ir.primitive import bind
from tracegrad.ir.types import TensorType
from tracegrad.tracer import tape
from tracegrad.tracer.array_rules import zeros_of
from tracegrad.tracer.tensor import Tensor, View, literal

_MODES = {
    "no_grad": ("no_grad mode", " with grad mode enabled", "no_grad"),
    "inference": ("inference mode", " in normal mode", "inference_mode"),
}
_AMBIGUOUS = (
    " Given that this use case is ambiguous and error-prone, it is forbidden. You can clarify your "
    "code by moving both the view and the inplace either both inside the {block} block (if you "
    "don't want the inplace to be tracked) or both outside (if you want the inplace to be tracked)."
)
_SEVERAL = (
    " This view is the output of a function that returns multiple views. Such functions do not "
    "allow the output views to be modified inplace. You should replace the inplace operation by an "
    "out-of-place one."
)
_OF_FUNCTION = (
    " This view was created inside a custom Function (or because an input was returned as-is) and "
    "the autograd logic to handle view+inplace would override the custom backward associated with "
    "the custom Function, leading to incorrect gradients. This behavior is forbidden. You can fix "
    "this by cloning the output of the custom Function."
)


def refusal(tensor: Tensor, made: str, indirect: bool) -> GradientError:
    """The error for a write to a view that autograd cannot follow, in PyTorch's words.

    Args:
        made: how the view came about (`View.made`), not "".
        indirect: another tensor over the same memory was written to, and `tensor` is used now.
    """
    changed = "is being modified inplace"
    if indirect:
        changed = "its base or another view of its base has been modified inplace"
    node = tensor._grad_fn
    mode, when, block = _MODES.get(made, ("", "", ""))
    if node is None:  # no node says what made the view: PyTorch takes it for grad mode's doing
        mode, when = (mode, when) if mode else _MODES["no_grad"][:2]
        text = f"A view was created in {mode} and {changed}{when}."
    else:
        of = f" of a view which was created in {mode}" if mode else ""
        text = f"Output {tensor._output_nr} of {node.name()} is a view{of} and {changed}{when}."
    reason = {"several": _SEVERAL, "function": _OF_FUNCTION}.get(made)
    return GradientError(text + (reason or _AMBIGUOUS.format(block=block)))


def replay(x: Any, chain: Sequence[Any]) -> Any:
    """Apply a view's chain of movement operations to `x` (a Tensor)."""
    for op, params, _ in chain:
        x = op.apply(x, **params) if isinstance(op, Region) else bind(op, (x,), params)
    return x


class Region:
    """A way of looking at memory that is no primitive, as a step of a view's chain.

    `eager(array, **params)` is the view of an array, `apply(tensor, **params)` the same elements
    of a Tensor by recorded operations, `transpose(ct, shape, **params)` the cotangent of an operand
    of shape `shape`.
    """

    def __init__(self, name: str, eager: Any, apply: Any, transpose: Any) -> None:
        self.name, self.eager, self.apply, self.transpose = name, eager, apply, transpose

    def __repr__(self) -> str:
        return f"<region {self.name}>"

    def batched(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters for operands with a new first axis."""
        return {k: v + 1 if k.startswith("axis") else v for k, v in params.items()}


def refresh(tensor: Tensor, view: View) -> None:
    """Make the history of a view anew after its memory was written through some alias.

    Raises:
        GradientError: the base requires grad, and autograd cannot follow writes to this view.
    """
    version = tensor._storage.version
    base = view.base
    if base.requires_grad or tensor._grad_fn is not None:  # or the base was detached since
        if view.made:
            raise refusal(tensor, view.made, indirect=True)
        chain = path(tensor, view)
        node = class_of_views("AsStridedBackward0")(base, tape.gradient_edge(base), chain)
        _move(tensor, node, 0)
        tensor._requires_grad = True
    view.version = version  # last: another thread may look meanwhile


def _move(tensor: Tensor, node: tape.BackwardNode | None, number: int) -> None:
    """Give `tensor` another place in the tape; `retain_grad()` goes on at the new one."""
    old = tensor._grad_fn
    if old is not None and old.retained and node is not None:
        mine = old.retained.get(tensor._output_nr)
        if mine is not None and mine() is tensor:
            old.retained = {k: v for k, v in old.retained.items() if v is not mine}
            node.retained = {**(node.retained or {}), number: mine}
    tensor._grad_fn, tensor._output_nr = node, number


def path(tensor: Tensor, view: View) -> tuple[Any, ...]:
    """The chain from the base, as it is laid out now, to the view."""
    base = view.base
    moves: tuple[Any, ...] = getattr(base, "_moves", ())
    chain = view.chain
    for k in range(len(moves) + 1):
        steps = (*moves[:k], *chain)
        if k == len(moves) or _leads_to(base._array, steps, tensor._array):
            return steps
    raise AssertionError("the last of the paths is returned")


def _leads_to(array: np.ndarray, chain: Sequence[Any], wanted: np.ndarray) -> bool:
    """Whether `chain` leads from `array` to exactly the memory of `wanted`."""
    for op, params, shape in chain:
        try:
            array = op.eager(array, **params)
        except (ValueError, IndexError):  # made for another layout
            return False
        if array.shape != shape:
            return False
    start = array.__array_interface__["data"][0] == wanted.__array_interface__["data"][0]
    return start and array.shape == wanted.shape and _steps(array) == _steps(wanted)


def _steps(array: np.ndarray) -> list[int]:
    """The strides that matter: NumPy's choice for dimensions of size 1 does not."""
    return [s for s, n in zip(array.strides, array.shape) if n > 1]


class ViewNode(tape.BackwardNode):
    """The backward of a chain of movement operations, as one node with a name of PyTorch's."""

    __slots__ = ("chain", "operands")

    def __init__(self, source: Tensor, edge: tape.Edge, chain: Sequence[Any]) -> None:
        dtype = source.dtype
        shapes = [source._array.shape, *(shape for _, _, shape in chain)]
        self.operands = tuple(TensorType(shape, dtype) for shape in shapes[:-1])
        self.chain = tuple(chain)
        super().__init__((edge,), (TensorType(shapes[-1], dtype),))

    @classmethod
    def of(
        cls, edge: tape.Edge, chain: tuple[Any, ...], operands: tuple[TensorType, ...],
        types: tuple[TensorType, ...],
    ) -> ViewNode:  # fmt: skip
        """A node of this class where the types of the chain are known."""
        node = cls.__new__(cls)
        node.operands, node.chain = operands, chain
        tape.BackwardNode.__init__(node, (edge,), types)
        return node

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """The cotangent of the source: the transposes of the chain's steps, last one first."""
        ct: Any = cotangents[0]
        assert ct is not None, "the engine runs a node with one output only with its cotangent"
        for (op, params, _), operand in zip(reversed(self.chain), reversed(self.operands)):
            if isinstance(op, Region):
                ct = op.transpose(ct, operand.shape, **params)
                continue
            ct = op.cotangent(0, ct, None, (tape.stand_in(op, operand),), params)
            if ct._array.shape != operand.shape:
                ct = ops.unbroadcast(ct, operand.shape)
        return [ct]

    def owns(self, part: Tensor, cotangents: Sequence[Tensor | None]) -> bool:
        """True for memory that a step made."""
        array = part._array
        fresh = array.base is None and array.flags.writeable
        return fresh and all(c is None or c._array is not array for c in cotangents)


_classes: dict[str, type[ViewNode]] = {}


def class_of_views(name: str) -> type[ViewNode]:
    """The class of the view nodes called `name`, made on first use."""
    found = _classes.get(name)
    if found is None:
        found = _classes[name] = type(name, (ViewNode,), {"__slots__": ()})
    return found


def as_one(out: Tensor, source: Tensor, name: str, steps: int) -> Tensor:
    """Give `out`, which the last `steps` operations made of `source`, one node, called `name`."""
    if isinstance(out, Tensor) and out._grad_fn is not None:
        assert out._view is not None, "movement operations made it"
        chain = out._view.chain[-steps:]
        out._grad_fn = class_of_views(name)(source, tape.gradient_edge(source), chain)
    return out


class SeveralViews(tape.BackwardNode):
    """The backward of a function that divides a tensor into parts along one dimension."""

    __slots__ = ("axis", "keeps")

    def __init__(self, source: Tensor, parts: Sequence[Tensor], axis: int) -> None:
        super().__init__((tape.gradient_edge(source),), [p.type_info for p in parts])
        self.axis = axis
        self.keeps = bool(parts) and parts[0].ndim == source.ndim

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """The parts' cotangents side by side; zeros where nothing depends on a part."""
        parts: list[Any] = []
        for ct, type in zip(cotangents, self.types, strict=True):
            part: Any = literal(zeros_of(type)) if ct is None else ct
            if not self.keeps:
                shape = (*type.shape[: self.axis], 1, *type.shape[self.axis :])
                part = ops.reshape(part, shape=shape)
            parts.append(part)
        return [ops.concat(*parts, axis=self.axis)]

    def owns(self, part: Tensor, cotangents: Sequence[Tensor | None]) -> bool:
        """True where joining made memory (one part alone may be passed through)."""
        return part._array.base is None and len(cotangents) > 1


class SplitBackward0(SeveralViews):
    """Of `split` into equal parts, and `chunk`."""

    __slots__ = ()


class SplitWithSizesBackward0(SeveralViews):
    """Of `split` into parts of given sizes."""

    __slots__ = ()


class UnbindBackward0(SeveralViews):
    """Of `unbind`, and of iteration over a tensor."""

    __slots__ = ()


def share_node(
    kind: type[SeveralViews], source: Tensor, parts: tuple[Tensor, ...], axis: int
) -> tuple[Tensor, ...]:
    """Make `parts`, views of `source` side by side along `axis`, the outputs of one node.

    Autograd cannot follow writes to them; `View.made` says so.
    """
    if not isinstance(source, Tensor):  # a value of the IR
        return parts
    if any(p._grad_fn is not None for p in parts):
        tape.attach(kind(source, parts, axis), parts)
    for p in parts:
        if p._view is not None and not p._view.made:
            p._view.made = "several"
    return parts


class CopySlices(tape.BackwardNode):
    """The backward of writing a new value into a region of a base."""

    __slots__ = ("chain", "outside")

    def __init__(self, edges: Sequence[tape.Edge], base: Tensor, chain: Sequence[Any]) -> None:
        super().__init__(edges, (base.type_info,))
        self.chain = tuple(chain)
        self.outside = _outside(base._array, self.chain)

    def name(self) -> str:
        """PyTorch's name of it."""
        return "torch::autograd::CopySlices"

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """The old base's cotangent outside the region, the new value's inside."""
        ct = cotangents[0]
        assert ct is not None, "the engine runs a node with one output only with its cotangent"
        old = new = None
        if self.edges[0][0] is not None:
            zero = np.zeros((), ct.dtype.numpy)
            old = ops.where(literal(self.outside, ct), ct, literal(zero, ct))
        if self.edges[1][0] is not None:
            new = replay(ct, self.chain) + 0  # memory of its own
        return [old, new]


def _outside(base: np.ndarray, chain: Sequence[Any]) -> np.ndarray:
    """A mask of the base: True where the region that `chain` leads to is not."""
    mask: np.ndarray = np.ones(base.shape, np.bool_)
    region = mask
    for op, params, _ in chain:
        region = op.eager(region, **params)
    assert region.size == 0 or np.may_share_memory(region, mask), "a view's chain made a copy"
    if not region.flags.writeable:
        region.flags.writeable = True
    region[...] = False
    return mask


def rebase(target: Tensor, value: Tensor) -> None:
    """Give `target` the history of `value`, which was just written to its memory."""
    view = target._view
    if view is None:
        assert value._grad_fn is not None or not value._requires_grad, "a leaf was written"
        _move(target, value._grad_fn, value._output_nr)
        target._requires_grad = value._requires_grad
        return
    base = view.base
    edges = (tape.gradient_edge(base), tape.gradient_edge(value))
    if edges[0][0] is None and edges[1][0] is None:
        return
    _move(base, CopySlices(edges, base, path(target, view)), 0)
    base._requires_grad = True
    refresh(target, view)
