"""`Function`: an operation whose forward and backward the user writes.

Start reading at `Function.apply`; the context is in `tracegrad.tracer.function_node`.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer import tape
from tracegrad.tracer.function_node import FunctionNode
from tracegrad.tracer.function_results import attach_results
from tracegrad.tracer.profiling import Block, profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

_LEGACY = (
    "Legacy autograd function with non-static forward method is deprecated. Please use new-style "
    "autograd function with static forward method. (Example: "
    "https://pytorch.org/docs/stable/autograd.html#torch.autograd.Function)"
)
_BOTH = (
    "Implementing both 'backward' and 'vjp' for a custom Function is not allowed. You should only "
    "implement one of them."
)
_NO_BACKWARD = (
    "You must implement either the backward or vjp method for your custom autograd.Function to use "
    "it with backward mode AD."
)


class _Twice(tape.BackwardNode):
    """Stands where the derivative of a `once_differentiable` backward would be."""

    __slots__ = ()

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Refuse."""
        raise GradientError(
            "trying to differentiate twice a function that was marked with @once_differentiable"
        )


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a `backward` that is not made of differentiable operations.

    It runs without recording; differentiating its results raises `GradientError`, also where
    PyTorch would take them for constants (because no incoming gradient requires grad).

    Example:
        >>> import tracegrad as tg
        >>> from tracegrad.autograd.function import once_differentiable
        >>> class Square(tg.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...     @staticmethod
        ...     @once_differentiable
        ...     def backward(ctx, grad):
        ...         return tg.from_numpy(2 * grad.numpy() * ctx.saved_tensors[0].detach().numpy())
        >>> x = tg.tensor([3.0], requires_grad=True)
        >>> (slope,) = tg.autograd.grad(Square.apply(x), x, create_graph=True)
        >>> slope.item()
        6.0
        >>> tg.autograd.grad(slope, x)
        Traceback (most recent call last):
        tracegrad.ir.errors.GradientError: trying to differentiate twice a function that was marked with...
    """

    @functools.wraps(fn)
    def wrapper(ctx: FunctionNode, *args: Any) -> Any:
        recorded = state.grad_enabled
        state.grad_enabled = False
        try:
            outputs = fn(ctx, *args)
        finally:
            state.grad_enabled = recorded
        if not recorded:
            return outputs
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        edges = [*ctx.edges, *(tape.gradient_edge(a) for a in args if isinstance(a, Tensor))]
        marked = tuple(_marked(r, edges) for r in results)
        return marked if isinstance(outputs, tuple) else marked[0]

    return wrapper


def _marked(result: Any, edges: Sequence[tape.Edge]) -> Any:
    if not isinstance(result, Tensor):
        return result
    made = wrap(result._array, result._storage)
    tape.attach(_Twice(edges, (made.type_info,)), (made,))
    return made


class Function:
    """An operation of your own: subclass it, and call it by `apply`.

    Write `forward(ctx, *args)`, or `forward(*args)` with `setup_context(ctx, inputs, output)`, and
    `backward(ctx, *grad_outputs)` (or `vjp`) returning one gradient per argument of `forward`, None
    for those that need none; all are static methods. `forward` runs without recording. A compiled
    function calls `backward` between the segments of its own. With `clear_saved_tensors_on_access =
    True` in the class, what was saved is let go of when `backward` has asked for it, which it may do
    once.

    Example:
        >>> import tracegrad as tg
        >>> class Cube(tg.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**3
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         (x,) = ctx.saved_tensors
        ...         return grad * 3 * x**2
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> Cube.apply(x).sum().backward()
        >>> x.grad
        tensor([ 3., 12.])
    """

    _node_class: ClassVar[type[FunctionNode]]
    generate_vmap_rule: ClassVar[bool] = False
    clear_saved_tensors_on_access: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._node_class = type(f"{cls.__name__}Backward", (FunctionNode,), {"_function": cls})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn(
            f"{type(self)} should not be instantiated. Methods on autograd functions are all "
            "static, so you should invoke them on the class itself. Instantiating an autograd "
            "function will raise an error in a future version of PyTorch.",
            DeprecationWarning, stacklevel=user_stacklevel(),
        )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102  (refused)
        raise GradientError(_LEGACY)

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the outputs: one, or a tuple of them; tensors among them are differentiable."""
        raise NotImplementedError(
            "You must implement the forward function for custom autograd.Function."
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Fill `ctx` after a `forward` that takes no `ctx`."""
        raise NotImplementedError("setup_context is not implemented.")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The gradients of the arguments from those of the outputs."""
        raise NotImplementedError(_NO_BACKWARD)

    vjp = backward

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        """The tangents of the outputs from those of the arguments."""
        raise NotImplementedError(
            "You must implement the jvp function for custom autograd.Function to use it with "
            "forward mode AD."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """The outputs for a batch, and their batch dimensions: `(output, out_dims)`.

        `info.batch_size` and `info.randomness` tell of the batch; `in_dims` has, per argument, the
        dimension along which it holds the examples, or None. Write it, or set
        `generate_vmap_rule = True` to have `forward` and `backward` traced.
        """
        raise NotImplementedError(
            "To use autograd.Function with vmap, you must either override the vmap staticmethod or "
            "set generate_vmap_rule=True."
        )

    @classmethod
    def _derivative(cls) -> Callable[..., Any]:
        has_backward = cls.backward is not Function.backward
        has_vjp = cls.vjp is not Function.vjp
        if has_backward and has_vjp:
            raise GradientError(_BOTH)
        return cls.vjp if has_vjp else cls.backward

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run `forward` and put `backward` on the tape.

        Keyword arguments are bound to the parameters of `forward`, as in PyTorch.

        Raises:
            GradientError: what the context was told does not fit what `forward` returned.
        """
        if cls is Function:
            return cls.forward(*args, **kwargs)  # which says that there is none
        with_setup = cls.setup_context is not Function.setup_context
        if kwargs or with_setup:
            args = _positional(cls.forward, args, kwargs, with_setup)
        node = cls._node_class(args)
        event: Block | None = None
        before = state.grad_enabled, state.recorder
        recorder = state.recorder
        if recorder is not None:
            state.recorder = recorder.for_function(node, args)
        state.grad_enabled = False
        try:
            if profilers and state.profiler is not None:
                event = state.profiler.function(cls.__name__, node, args)
                event.__enter__()
            if with_setup:
                result = cls.forward(*args)
                cls.setup_context(node, args, result)
            else:
                result = cls.forward(node, *args)
        finally:
            if event is not None:
                event.__exit__(None, None, None)
            state.grad_enabled, state.recorder = before
        outputs = result if isinstance(result, tuple) else (result,)
        given = attach_results(node, args, outputs)
        node._save(given)
        if recorder is not None:
            recorder.function(node, args, given)
            node.note_companions(recorder, given)
        node._dirty = node._constant = ()  # an output that is marked would keep itself
        return tuple(given) if isinstance(result, tuple) else given[0]


def _positional(
    forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any], with_setup: bool
) -> tuple[Any, ...]:
    bound = inspect.signature(forward).bind(*(args if with_setup else (None, *args)), **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise OperandError(
            f"apply() cannot pass keyword-only arguments to forward: {sorted(bound.kwargs)}"
        )
    return bound.args if with_setup else bound.args[1:]
