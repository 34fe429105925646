"""What a transform does to its inputs and results, and how its arguments are checked.

A transform differentiates with respect to *fresh* tensors over the memory of its inputs. What it
returns keeps its history only as far as that leads to tensors outside of the transform: an
enclosing transform's inputs, or the user's own tensors that require grad. So transforms nest, and
their results are plain tensors where nothing outside asks for more. Start reading at `Level`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tracegrad.ir.errors import GradientError, ParameterError
from tracegrad.tracer.grad_mode import enable_grad
from tracegrad.tracer.pytree import Structure, flatten
from tracegrad.tracer.shapes import view_as
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import Transform, marking
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, accumulator, gradient_edge
from tracegrad.tracer.tensor import Tensor, alias

Tensors = tuple[Tensor, ...]


@contextmanager
def transforming() -> Iterator[None]:
    """A block in which a transform runs the user's code: `backward()` is refused there."""
    state.transforms += 1
    try:
        with out_of_inference():
            yield
    finally:
        state.transforms -= 1


@contextmanager
def out_of_inference() -> Iterator[None]:
    """A block in which what is made may be differentiated, whatever surrounds it."""
    before = state.inference
    state.inference = False
    try:
        yield
    finally:
        state.inference = before


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Grad mode, inside of `inference_mode()` too: where a transform makes its own inputs."""
    with out_of_inference(), enable_grad():
        yield


@contextmanager
def differentiating(inputs: Iterable[Tensor], others: Any = ()) -> Iterator[None]:
    """As `transforming`, for transforms that differentiate: tensors outside are not written to.

    Args:
        inputs: the fresh tensors to differentiate with respect to.
        others: the arguments; those among them that are not replaced by fresh tensors may be
            written to.
    """
    leaves: list[Any] = []
    flatten(others, leaves)
    opened = Transform(state.transform)
    opened.inputs = tuple(inputs)
    memory = [x._storage.memory for x in opened.inputs]
    opened.others = tuple(
        x._storage.memory
        for x in leaves
        if isinstance(x, Tensor) and not any(x._storage.memory is m for m in memory)
    )
    state.transform = opened
    marking.append(opened)
    try:
        with transforming():
            yield
    finally:
        marking.remove(opened)
        state.transform = opened.outer
        opened.open = False
        opened.inputs = opened.others = ()


_finished: weakref.WeakSet[BackwardNode] = weakref.WeakSet()  # leaves of levels that have ended


class Level:
    """One transform at work. Make it before switching the grad mode on.

    Under `no_grad()` outside of the transform, nothing is connected to what lies outside.
    """

    def __init__(self) -> None:
        self._connected = state.grad_enabled
        self._own: set[BackwardNode] = set()

    def enter(self, given: Sequence[Any]) -> Tensors:
        """Fresh tensors to differentiate with respect to, one per tensor given.

        Raises:
            ParameterError: something given is not a tensor.
            GradientError: a tensor is not of floating dtype.
        """
        check_tensors(given)
        return tuple(self._fresh(x) for x in given)

    def _fresh(self, x: Tensor) -> Tensor:
        if self._connected and x.requires_grad:
            return view_as(x, x)
        made = alias(x).requires_grad_()
        self.own((made,))
        return made

    def own(self, leaves: Iterable[Tensor]) -> None:
        """Count these leaves as belonging to the transform."""
        self._own.update(accumulator(x) for x in leaves)

    def finish(self) -> None:
        """The function has run, and only what it has recorded lives on (that of `vjp`): its fresh
        leaves are nothing outside to whoever uses that later.
        """
        _finished.update(self._own)

    def reaches_outside(self, values: Iterable[Any]) -> bool:
        """Whether the history of one of the tensors among `values` leads to a leaf outside."""
        if not self._connected:
            return False
        roots = (gradient_edge(x)[0] for x in values if isinstance(x, Tensor))
        seen = {node for node in roots if node is not None}
        stack = list(seen)
        while stack:
            node = stack.pop()
            if isinstance(node, AccumulateGrad) and node not in self._own:
                if node not in _finished:
                    return True
            fresh = {n for n, _ in node.edges if n is not None} - seen
            seen |= fresh
            stack.extend(fresh)
        return False

    def _leave_companions(self, x: Tensor) -> None:
        """Detach tangents and batches of a result too, unless their history leads outside."""
        if state.recorder is None:
            return
        for lockstep, companion in state.recorder.companions(x):
            with lockstep.outside():
                self._leave_companions(companion)  # a tangent may have a batch, and so on
                if companion.requires_grad and not self.reaches_outside([companion]):
                    lockstep.accompany(x, alias(companion))

    def leave(self, value: Any) -> Any:
        """A result as the caller sees it: detached, unless its history leads outside."""
        leaves: list[Any] = []
        structure = flatten(value, leaves)
        for x in leaves:
            if isinstance(x, Tensor):
                self._leave_companions(x)
        return structure.build(
            alias(x) if isinstance(x, Tensor) and x.requires_grad and not self.reaches_outside([x])
            else x
            for x in leaves
        )  # fmt: skip


def check_tensors(given: Sequence[Any]) -> None:
    """Refuse arguments to differentiate with respect to that are no tensors.

    Raises:
        ParameterError: there is one.
    """
    for x in given:
        if not isinstance(x, Tensor):
            raise ParameterError(f"Thing passed to transform API must be Tensor, got {type(x)}")


class Chosen:
    """The arguments that `argnums` chooses, flat, and how to put others in their place.

    Raises:
        GradientError: `argnums` does not fit (PyTorch's texts).
    """

    def __init__(self, args: Sequence[Any], argnums: Any) -> None:
        if not isinstance(argnums, int | tuple):
            raise GradientError(f"argnums must be int or Tuple[int, ...], got: {type(argnums)}")
        numbers = argnums if isinstance(argnums, tuple) else (argnums,)
        self._args = tuple(args)
        self._positions = tuple(_position(n, len(args)) for n in numbers)
        if not numbers:
            raise GradientError("argnums must be non-empty")
        if len(set(self._positions)) < len(numbers):
            raise GradientError(f"argnums elements must be unique, got {self._positions}")
        self.leaves: list[Any] = []
        picked: Any = tuple(args[p] for p in self._positions)
        self.structure = flatten(picked if isinstance(argnums, tuple) else picked[0], self.leaves)
        self._lone = not isinstance(argnums, tuple)

    def replaced(self, leaves: Iterable[Any]) -> list[Any]:
        """All arguments, with `leaves` for those of the chosen ones."""
        built = self.structure.build(iter(leaves))
        result = list(self._args)
        for position, value in zip(self._positions, (built,) if self._lone else built):
            result[position] = value
        return result


def _position(number: Any, count: int) -> int:
    if not isinstance(number, int):
        raise GradientError(f"argnum must be int, got: {type(number)}")
    if not -count <= number < count:
        raise GradientError(f"Got argnum={number}, but only {count} positional inputs")
    return number % count


def with_aux(result: Any, has_aux: bool, function: str) -> tuple[Any, Any]:
    """A function's output and its auxiliary value (None without `has_aux`).

    Raises:
        GradientError: `has_aux`, and the result is not a pair.
    """
    if not has_aux:
        return result, None
    if not (isinstance(result, tuple) and len(result) == 2):
        raise GradientError(
            f"{function}: output of function f should be a tuple: (output, aux) if has_aux is True"
        )
    return result


def flat_outputs(output: Any, function: str) -> tuple[Tensors, Structure]:
    """The tensors in a function's output, and how they are nested.

    Raises:
        GradientError: there is none, or something among them is not a tensor.
    """
    leaves: list[Any] = []
    structure = flatten(output, leaves)
    if not leaves or leaves == [None]:
        raise GradientError(
            f"{function}: Expected f to be a function that has non-empty output "
            f"(got output = {leaves})"
        )
    for x in leaves:
        if not isinstance(x, Tensor):
            raise GradientError(
                f"{function}: expected f(*primals) to return only tensors, got unsupported type "
                f"{type(x)}"
            )
    return tuple(leaves), structure


class _Star:
    """A leaf, in printed structures."""

    def __repr__(self) -> str:
        return "*"


def printed(structure: Structure, count: int) -> str:
    """A structure with stars for leaves: `(*, {'a': *})`."""
    return repr(structure.build(iter([_Star()] * count)))
