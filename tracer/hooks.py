"""Functions of the user's that the engine calls while it runs, and the handles that remove them.

A node has hooks of three kinds, in the order in which they run: on the cotangent of one output
(`Tensor.register_hook`), on all cotangents before the node runs (`register_prehook`), and on its
results (`register_hook` of the node). A leaf has one more: after its `.grad` has been added to.
Start reading at `NodeHooks`.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracegrad.ir.errors import GradientError, OperandError

if TYPE_CHECKING:
    from tracegrad.tracer.tape import AccumulateGrad
    from tracegrad.tracer.tensor import Tensor

Hook = Callable[..., Any]
_numbers = itertools.count()


class Hooks(dict[int, Hook]):
    """Hooks by the number of their handle, which refers to them weakly."""

    __slots__ = ("__weakref__",)


class NodeHooks:
    """The hooks of one node.

    Attributes:
        tensor: for each output number, hooks called with its cotangent.
        pre: called with the tuple of cotangents; may return another.
        post: called with (cotangents of the inputs, cotangents of the outputs).
        accumulated: of a leaf: called with the leaf when its `.grad` has been added to.
    """

    __slots__ = ("tensor", "pre", "post", "accumulated")

    def __init__(self) -> None:
        self.tensor: dict[int, Hooks] = {}
        self.pre = Hooks()
        self.post = Hooks()
        self.accumulated = Hooks()

    # ---- what the engine calls ------------------------------------------------------------------

    def on_cotangent(self, number: int, ct: Tensor | None) -> Tensor | None:
        """The cotangent of an output after its hooks, in the order of their registration.

        None, of an output of several that nothing depends on, is shown to them too.
        """
        for hook in list(self.tensor.get(number, {}).values()):
            changed = hook(ct)
            if changed is not None:
                ct = _checked(hook, ct, changed)
        return ct

    def before(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The cotangents of all outputs after the node's prehooks."""
        given = tuple(cotangents)
        for hook in list(self.pre.values()):
            given = _checked_tuple(hook, given, hook(given))
        return list(given)

    def after(
        self, parts: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """The node's results after its hooks."""
        made = tuple(parts)
        for hook in list(self.post.values()):
            made = _checked_tuple(hook, made, hook(made, tuple(cotangents)))
        return made

    def on_leaf(self, leaf: Tensor) -> None:
        """Tell that `leaf.grad` has been added to."""
        for hook in list(self.accumulated.values()):
            changed = hook(leaf)
            if changed is not None:
                _need_tensor(changed)
                raise GradientError("Tensor post accumulate grad hooks should return None.")


class RemovableHandle:
    """What registering a hook returns: `remove()` takes it away; also a context that does.

    It keeps neither the hook nor what it is on.
    """

    def __init__(self, hooks: Hooks, hook: Hook) -> None:
        self.id = next(_numbers)  # objects come and go and their ids are used again: these are not
        self._hooks = weakref.ref(hooks)
        hooks[self.id] = hook

    def remove(self) -> None:
        """Take the hook away; doing so again does nothing."""
        hooks = self._hooks()
        if hooks is not None:
            hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


# ---- checks of what hooks return ----------------------------------------------------------------


def _name(hook: Hook) -> str:
    return getattr(hook, "__name__", type(hook).__name__)


def _need_tensor(new: Any) -> Tensor:
    from tracegrad.tracer.tensor import Tensor

    if not isinstance(new, Tensor):
        raise OperandError(f"expected Variable, but hook returned '{type(new).__name__}'")
    return new


def _checked(hook: Hook, old: Tensor | None, new: Any) -> Tensor:
    from tracegrad.tracer.tape import scalar_type_name

    new = _need_tensor(new)
    if old is None:
        raise GradientError(
            f"can't replace a None gradient with a non-None value (by hook '{_name(hook)}')"
        )
    if new.dtype is not old.dtype:
        have, was = scalar_type_name(new.dtype), scalar_type_name(old.dtype)
        raise GradientError(
            f"hook '{_name(hook)}' has changed the type of value "
            f"(was torch.{was}Tensor got torch.{have}Tensor)"
        )
    if new.device != old.device:
        raise GradientError(
            f"hook '{_name(hook)}' has changed the device of value (was {old.device} got "
            f"{new.device})"
        )
    if new._array.shape != old._array.shape:
        raise GradientError(f"hook '{_name(hook)}' has changed the size of value")
    return new


def _checked_tuple(
    hook: Hook, old: tuple[Tensor | None, ...], new: Any
) -> tuple[Tensor | None, ...]:
    if new is None:
        return old
    if not isinstance(new, tuple):
        raise OperandError(f"expected tuple, but hook returned '{type(new).__name__}'")
    if len(new) != len(old):
        raise GradientError(
            f"hook '{_name(hook)}' has returned an incorrect number of values "
            f"(got {len(new)}, but expected {len(old)})"
        )
    return tuple(n if n is None else _checked(hook, o, n) for o, n in zip(old, new, strict=True))


# ---- registering --------------------------------------------------------------------------------


def hooks_of(node: Any) -> NodeHooks:
    """The hooks of a node, made where it has none."""
    if node.hooks is None:
        node.hooks = NodeHooks()
    found: NodeHooks = node.hooks
    return found


def _note(what: str, tensor: Tensor | None = None) -> None:
    from tracegrad.tracer.state import state

    if state.recorder is not None:
        state.recorder.note(what, tensor)


def _node_of(tensor: Tensor) -> tuple[Any, int]:
    from tracegrad.tracer.tape import AccumulateGrad, accumulator, gradient_edge

    if not tensor.requires_grad:
        raise GradientError("cannot register a hook on a tensor that doesn't require gradient")
    node, number = gradient_edge(tensor)
    if node is None:  # a borrowed view; it may become a leaf of its own later
        node = accumulator(tensor)
    if isinstance(node, AccumulateGrad) and not isinstance(tensor._accumulator, _HookedLeaf):
        tensor._accumulator = _HookedLeaf(node)
    return node, number


def hooks_on(tensor: Tensor) -> OrderedDict[int, Hook] | None:
    """The hooks that `Tensor.register_hook` has put on the value of a tensor."""
    node, number = tensor._grad_fn, tensor._output_nr
    if node is None and tensor._accumulator is not None:
        node, number = tensor._accumulator(), 0
    if node is None or node.hooks is None or number not in node.hooks.tensor:
        return None
    return OrderedDict(node.hooks.tensor[number])


class _HookedLeaf:
    """Called for the AccumulateGrad of a leaf with hooks, as the weak reference of other leaves is.

    The leaf holds it, and it holds the hooks; the node, which holds the leaf, is made anew when it
    is gone. So a leaf with hooks is released with its last user.
    """

    __slots__ = ("_leaf", "_node", "_hooks", "_lock")

    def __init__(self, node: AccumulateGrad) -> None:
        self._leaf = weakref.ref(node.variable)
        self._node = weakref.ref(node)
        self._hooks = hooks_of(node)
        self._lock = threading.RLock()

    def __call__(self) -> AccumulateGrad:
        node = self._node()
        if node is None:
            with self._lock:  # of two threads one makes it
                node = self._node()
                if node is None:
                    node = self._again()
        return node

    def _again(self) -> AccumulateGrad:
        from tracegrad.tracer.tape import AccumulateGrad

        leaf = self._leaf()
        assert leaf is not None, "asked for by the leaf"
        node = AccumulateGrad(leaf)
        node.hooks = self._hooks
        self._node = weakref.ref(node)
        return node


def register_hook(self: Tensor, hook: Callable[[Tensor], Any]) -> RemovableHandle:
    """Call `hook(grad)` when the gradient of this tensor is complete; it may return another.

    Hooks run in the order of registration, each with what the one before returned, and before
    `retain_grad()` or accumulation store the gradient. They belong to the value that the tensor
    has now: those registered before an in-place operation see the gradient of the old value.

    Args:
        hook: called with a tensor of this shape and dtype; must return one, or None.
    Returns:
        A handle with `remove()`.
    Raises:
        GradientError: the tensor does not require grad; at the backward: the shape or dtype of
            what the hook returned is another.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> handle = x.register_hook(lambda g: g * 10)
        >>> x.sum().backward()
        >>> x.grad
        tensor([10., 10.])
    """
    node, number = _node_of(self)
    _note("register_hook()", self)
    return RemovableHandle(hooks_of(node).tensor.setdefault(number, Hooks()), hook)


def register_post_accumulate_grad_hook(self: Tensor, hook: Callable[[Tensor], None]) -> Any:
    """Call `hook(leaf)` each time after a backward has added to `.grad` of this leaf.

    Args:
        hook: called with the tensor; may use and change its `.grad`; must return None.
    Returns:
        A handle with `remove()`.
    Raises:
        GradientError: the tensor does not require grad, or is not a leaf.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> def step(leaf):
        ...     leaf.data -= 0.1 * leaf.grad
        ...     leaf.grad = None
        >>> handle = x.register_post_accumulate_grad_hook(step)
        >>> x.sum().backward()
        >>> x.detach()
        tensor([0.9000, 0.9000])
    """
    if self.requires_grad and not self.is_leaf:
        raise GradientError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    node, _ = _node_of(self)
    _note("register_post_accumulate_grad_hook()", self)
    return RemovableHandle(hooks_of(node).accumulated, hook)
