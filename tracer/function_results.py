"""What `Function.apply` makes of the outputs of the user's `forward`: their place in the tape.

An output may be a new tensor, an input that was written to (`mark_dirty`), an input returned as it
is, a view of one, something without gradient, or no tensor at all. Start at `attach_results`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracegrad.ir.dtypes import float32
from tracegrad.ir.errors import GradientError
from tracegrad.ir.location import user_stacklevel
from tracegrad.ir.types import TensorType
from tracegrad.tracer.tensor import Tensor, View, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.function_node import FunctionNode

_LEAF = "a leaf Variable that requires grad has been used in an in-place operation."
_NOT_RETURNED = (
    "Some elements marked as dirty during the forward method were not returned as output. The "
    "inputs that are modified inplace must all be outputs of the Function."
)
_NOT_AN_INPUT = (
    "ctx.mark_dirty() received a tensor that was not an input. Only input Tensors that have been "
    "mutated should be passed to ctx.mark_dirty()."
)
_DIRTY_VIEW = (
    "a view is marked dirty by {name}: its base would not learn of the new history; pass a clone() "
    "of it, or write to the base"
)


def attach_results(node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """The outputs as the caller gets them, with `node` as their history."""
    _check_marks(node, args, outputs)
    for x in node._dirty:
        x._storage.bump(f"{node._function.__name__}.forward")
    inputs = {id(x) for x in args if isinstance(x, Tensor)}
    dirty = {id(x) for x in node._dirty}
    constant = {id(x) for x in node._constant}
    given = [
        _result(node, x, id(x) in inputs, id(x) in dirty) if isinstance(x, Tensor) else x
        for x in outputs
    ]
    # an output that is no tensor counts too: `backward` is given None for it
    node.types = tuple(x.type_info if isinstance(x, Tensor) else _NOTHING for x in given)
    node._tensor_outputs = [isinstance(x, Tensor) for x in given]
    if not node._recorded:
        return given
    for number, (x, made) in enumerate(zip(outputs, given, strict=True)):
        if isinstance(made, Tensor) and id(x) not in constant and made.dtype.is_floating_point:
            made._requires_grad = True
            made._grad_fn, made._output_nr = node, number
    _note_views(given, {id(x) for x in node._dirty})
    return given


def _note_views(given: Sequence[Any], dirty: set[int]) -> None:
    """Say of the views among the results that autograd cannot follow writes to them."""
    made = "function" if sum(isinstance(x, Tensor) for x in given) == 1 else "several"
    for x in given:
        if isinstance(x, Tensor) and x._view is not None and id(x) not in dirty:
            x._view.made = made
            if x._grad_fn is None:
                x._requires_grad = False


_NOTHING = TensorType((), float32)


def _check_marks(node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> None:
    for what, marked in (
        ("mark_dirty can only accept variables, but argument", node._dirty),
        ("mark_non_differentiable only accepts variable arguments, but got", node._constant),
    ):
        for i, x in enumerate(marked):
            if not isinstance(x, Tensor):
                kind = type(x).__name__
                text = f"{what} {i} is of type {kind}" if "dirty" in what else f"{what} {kind}"
                raise GradientError(text)
    returned = {id(x) for x in outputs}
    passed = {id(x) for x in args}
    for x in node._dirty:
        if id(x) not in returned:
            raise GradientError(_NOT_RETURNED)
        if id(x) not in passed:
            warnings.warn(_NOT_AN_INPUT, UserWarning, stacklevel=user_stacklevel())
        if node._recorded and x.requires_grad and x.is_leaf and id(x) in passed:
            raise GradientError(_LEAF)
        if node._recorded and x._view is not None:
            raise GradientError(_DIRTY_VIEW.format(name=node._function.__name__))


def _result(node: FunctionNode, x: Tensor, is_input: bool, is_dirty: bool) -> Tensor:
    if is_dirty or not is_input:
        return x
    # returned as it is: another tensor over the same memory, as PyTorch's view_as gives
    made = wrap(x._array, x._storage)
    base = x if x._view is None else x._view.base  # the caller may not write through it
    made._view = View(base, (), x._storage.version, "function")
    if not node._recorded:
        made._view.borrowed = made._requires_grad = x.requires_grad
    return made
