"""`vmap` over a `Function`: its own `vmap` method, or its forward and backward traced.

Start reading at `by_own_rule` and `attach_backward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tracegrad.ir.errors import GradientError
from tracegrad.tracer import tape
from tracegrad.tracer.capture_hook import recording
from tracegrad.tracer.shapes import movedim
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.batching import Examples
    from tracegrad.tracer.function import Function
    from tracegrad.tracer.function_node import FunctionNode

_MORE = " For more details, please see https://pytorch.org/docs/main/notes/extending.func.html"
_NEITHER = (
    "You tried to vmap over {name}, but it does not have vmap support. Please override and implement "
    "the vmap staticmethod or set generate_vmap_rule=True." + _MORE
)
_BOTH = (
    "You tried to vmap over {name}, but it has both generate_vmap_rule=True and an overridden vmap "
    "staticmethod. Please set generate_vmap_rule=False or delete the overridden vmap staticmethod to "
    "avoid ambiguity." + _MORE
)
_TWO = (
    "Expected the vmap staticmethod to have two returns, an output and out_dims with pytree structure "
    "compatible with the output. Got a {what} instead"
)
_DIMS = (
    "The autograd.Function's vmap staticmethod returned an incompatible (output, out_dims) tuple. "
    "Expected out_dims={dims} to be compatible with the structure of `output`." + _MORE
)


class VmapInfo(NamedTuple):
    """What a `vmap` method is told of the batch."""

    batch_size: int
    randomness: str


def is_traced(function: type[Function]) -> bool:
    """Whether forward and backward are traced, rather than the function's own `vmap` called.

    Raises:
        GradientError: it asks for both, or for neither.
    """
    from tracegrad.tracer.function import Function

    own = function.vmap is not Function.vmap
    if own == function.generate_vmap_rule:
        raise GradientError((_BOTH if own else _NEITHER).format(name=function.__name__))
    return not own


def by_own_rule(
    node: FunctionNode, args: Sequence[Any], batched: Sequence[bool], size: int, randomness: str,
    outputs: Sequence[Any],
) -> list[Tensor | None]:  # fmt: skip
    """The batch of each output, as the function's `vmap` gives it; None where it is no tensor.

    Raises:
        GradientError: it did not return outputs and their dimensions.
    """
    in_dims = tuple(0 if b else None for b in batched)
    result = node._function.vmap(VmapInfo(size, randomness), in_dims, *args)
    if not isinstance(result, tuple):
        raise GradientError(_TWO.format(what=type(result)))
    if len(result) != 2:
        raise GradientError(_TWO.format(what=f"{len(result)} returns").replace("a ", "", 1))
    given, dims = result
    found = given if isinstance(given, tuple) else (given,)
    if not isinstance(dims, tuple):
        dims = (dims,) * len(found)
    if len(dims) != len(found) or len(found) != len(outputs):
        raise GradientError(_DIMS.format(dims=result[1]))
    return [_first(x, dim, size) for x, dim in zip(found, dims, strict=True)]


def _first(x: Any, dim: int | None, size: int) -> Tensor | None:
    """A result with its batch dimension in front."""
    if not isinstance(x, Tensor):
        return None
    made: Tensor = x.expand(size, *x.shape) if dim is None else movedim(x, dim, 0)
    return made


class BatchedFunctionBackward(tape.BackwardNode):
    """The backward of all examples: that of one example, traced once more."""

    __slots__ = ("examples", "node")
    runs_user_code = True

    def __init__(self, examples: Examples, node: FunctionNode, batches: Sequence[Tensor]) -> None:
        super().__init__([tape.gradient_edge(x) for x in batches], ())
        self.examples = examples
        self.node = node

    def name(self) -> str:
        """As that of the function's own node."""
        return self.node.name()

    def release(self) -> None:
        """Drop what the example saved."""
        self.node.release()

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Run the user's `backward` for one example, in step with all."""
        examples = self.examples.again(create_graph)
        given = [None if ct is None else examples.example(ct, 0) for ct in cotangents]
        with recording(examples):
            parts = self.node.apply(given, create_graph)
            return [None if p is None else examples.batch(p) for p in parts]


def attach_backward(
    examples: Examples, node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]
) -> bool:
    """Give the traced outputs the function's own backward; False where none is asked for."""
    batches = [examples.batch(x) for x in args if isinstance(x, Tensor)]
    if not state.grad_enabled or not any(x.requires_grad for x in batches):
        return False
    constant = {id(x) for x in node._constant}
    made = BatchedFunctionBackward(examples, node, batches)
    types = []
    for number, out in enumerate(outputs):
        many = examples.batch(out) if isinstance(out, Tensor) else None
        types.append(node.types[number] if many is None else many.type_info)
        if many is None or id(out) in constant or not many.dtype.is_floating_point:
            continue
        fresh = wrap(many._array, many._storage)
        fresh._requires_grad, fresh._grad_fn, fresh._output_nr = True, made, number
        examples.accompany(out, fresh)
    made.types = tuple(types)
    return True
