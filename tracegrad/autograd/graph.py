"""The tape as users see it: places in it, hooks over several tensors, hooks on what it keeps.

Start reading at `saved_tensors_hooks` and `register_multi_grad_hook`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tracegrad.autograd.saved_mutation import allow_mutation_on_saved_tensors
from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.tracer.hooks import RemovableHandle
from tracegrad.tracer.roots import GradientEdge
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.tape import AccumulateGrad, gradient_edge
from tracegrad.tracer.tape import BackwardNode as Node
from tracegrad.tracer.tensor import Tensor

__all__ = ["GradientEdge", "Node", "allow_mutation_on_saved_tensors",
           "disable_saved_tensors_hooks", "get_gradient_edge", "increment_version",
           "register_multi_grad_hook",
           "save_on_cpu", "saved_tensors_hooks"]  # fmt: skip


def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """The place in the tape where the gradient of `tensor` arrives.

    `autograd.grad` and `backward` take it in place of the tensor, which may then be released.

    Raises:
        GradientError: the tensor does not require grad.
        AssertionError: it is a view made under `no_grad()`, at which no gradient arrives.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> y = x * 3
        >>> edge = tg.autograd.graph.get_gradient_edge(y)
        >>> tg.autograd.grad(y.sum(), edge)
        (tensor([1., 1.]),)
    """
    if not tensor.requires_grad:
        raise GradientError(
            "It is not possible to get the gradient edge for a Tensor that does not require "
            "gradients"
        )
    node, number = gradient_edge(tensor)
    if node is None:  # a view that was made while nothing was recorded
        raise AssertionError("Expected gradient function to be set")
    return GradientEdge(node, number)


def increment_version(tensor: Tensor | Iterable[Tensor]) -> None:
    """Tell autograd that memory was written to where it could not see it, as by NumPy.

    A backward that needs what was there before then raises instead of going on with what is there
    now. Tensors made in inference mode have no version, and are left alone.

    Raises:
        GradientError: it is neither a tensor nor an iterable of tensors.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2)
        >>> x.numpy()[0] = 5
        >>> tg.autograd.graph.increment_version(x)
        >>> x._version
        1
    """
    tensors = [tensor] if isinstance(tensor, Tensor) else tensor
    found = list(tensors) if isinstance(tensors, Iterable) else [None]
    if not all(isinstance(t, Tensor) for t in found):
        raise GradientError("increment_version expect a Iterable[Tensor] as input")
    for t in found:
        if not t._storage.inference:
            if state.recorder is not None:
                state.recorder.note("increment_version()", t)
            t._storage.bump("increment_version")


# ---- hooks over several tensors -----------------------------------------------------------------


class _Handles:
    """The handles of one multi-grad hook, removed together."""

    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self._handles = tuple(handles)

    def remove(self) -> None:
        """Take the hook away."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> _Handles:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def register_multi_grad_hook(
    tensors: Sequence[Tensor], fn: Callable[..., None], *, mode: str = "all"
) -> _Handles:
    """Call `fn` once in each backward for the gradients of several tensors.

    Args:
        tensors: tensors that require grad.
        fn: with mode "all", called with the list of gradients when the last of those that this
            backward computes is there, None for the others; with "any", with the first one.
    Returns:
        A handle with `remove()`.
    Raises:
        ValueError: another mode.
        GradientError: one of the tensors does not require grad.
    Example:
        >>> import tracegrad as tg
        >>> a, b = (tg.ones(2, requires_grad=True) for _ in range(2))
        >>> handle = tg.autograd.graph.register_multi_grad_hook([a, b], print)
        >>> (a * 2).sum().backward()
        [tensor([2., 2.]), None]
        >>> handle.remove()
    """
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of ('all', 'any') but got {mode}")
    nodes = [_node_of(t) for t in tensors]
    key = object()
    lock = threading.Lock()

    def hook_for(index: int) -> Callable[[Tensor], None]:
        def hook(ct: Tensor) -> None:
            run = state.run
            assert run is not None, "hooks are called in a backward"
            with lock:
                if mode == "any":
                    grads: Any = ct
                    complete = key not in run.shared
                    run.shared[key] = True
                else:
                    kept = run.shared.get(key)
                    if kept is None:
                        expected = sum(node() in run.planned for node in nodes)
                        kept = run.shared[key] = [expected, [None] * len(nodes)]
                    kept[0] -= 1
                    kept[1][index] = ct
                    grads, complete = kept[1], kept[0] == 0
            if complete:
                fn(grads)

        return hook

    return _Handles([t.register_hook(hook_for(i)) for i, t in enumerate(tensors)])


def _node_of(tensor: Tensor) -> Callable[[], Any]:
    """A way to the node that takes the gradient of `tensor`; it keeps neither of them."""
    node = get_gradient_edge(tensor).node
    if not isinstance(node, AccumulateGrad):
        return weakref.ref(node)
    leaf = weakref.ref(tensor)

    def accumulator() -> Any:
        alive = leaf()
        return None if alive is None else gradient_edge(alive)[0]

    return accumulator


# ---- hooks on what the tape keeps ---------------------------------------------------------------


class saved_tensors_hooks:
    """Give each tensor that the tape would keep to `pack_hook`, and get it back by `unpack_hook`.

    Applies to operations inside the `with` block, in this thread; of nested blocks the innermost
    counts. Compiled functions called inside run eagerly. `pack_hook(tensor)` may return anything
    and must not write to the tensor; `unpack_hook` must make of it a tensor of the same data.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> with tg.autograd.graph.saved_tensors_hooks(lambda t: t.tolist(), tg.tensor):
        ...     y = (x * x).sum()
        >>> y.backward()
        >>> x.grad
        tensor([2., 4.])
    """

    def __init__(
        self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]
    ) -> None:
        self.pack_hook = pack_hook
        self.unpack_hook = unpack_hook

    def __enter__(self) -> None:
        if state.saved_hooks_disabled is not None:
            raise GradientError(state.saved_hooks_disabled)
        for hook in (self.pack_hook, self.unpack_hook):
            if not callable(hook):
                raise OperandError(
                    f"saved_tensors_hooks: hooks must be functions, got {type(hook).__name__}"
                )
        if state.recorder is not None:
            state.recorder.note("saved_tensors_hooks")
        watching.append(self)
        state.saved_hooks = (*state.saved_hooks, (self.pack_hook, self.unpack_hook))

    def __exit__(self, *error: object) -> None:
        state.saved_hooks = state.saved_hooks[:-1]
        watching.remove(self)


class save_on_cpu(saved_tensors_hooks):
    """Keep what the tape saves in the CPU's memory, in copies of its own.

    On the CPU this means that later in-place writes do not reach what was saved.

    Args:
        pin_memory: page-locked memory; needs a CUDA device.
    Raises:
        DeviceError: `pin_memory` is set.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> y = x * 1
        >>> with tg.autograd.graph.save_on_cpu():
        ...     z = (y * y).sum()
        >>> changed = y.mul_(100)
        >>> z.backward()
        >>> x.grad
        tensor([2., 2.])
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        if pin_memory:
            raise NotImplementedError(
                "save_on_cpu: pin_memory=True needs tensors on a CUDA device; leave it out"
            )
        super().__init__(lambda tensor: tensor.detach().clone(), lambda packed: packed)


@contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Refuse `saved_tensors_hooks` inside the `with` block, with the given message.

    Raises:
        GradientError: they are in use already.
    Example:
        >>> import tracegrad as tg
        >>> with tg.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        ...     with tg.autograd.graph.save_on_cpu():
        ...         pass
        Traceback (most recent call last):
        tracegrad.ir.errors.GradientError: no hooks here
    """
    if state.saved_hooks:
        raise GradientError(error_message)
    before = state.saved_hooks_disabled
    state.saved_hooks_disabled = error_message
    try:
        yield
    finally:
        state.saved_hooks_disabled = before
