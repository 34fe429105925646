"""The context of a `Function`, which is its node of the tape too.

What `forward` stores on `ctx` is found on `grad_fn`, as in PyTorch. Start reading at
`FunctionNode.apply`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tracegrad.ir import ops
from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.tracer import tape
from tracegrad.tracer.array_rules import zeros_of
from tracegrad.tracer.pytree import flatten
from tracegrad.tracer.roots import brought
from tracegrad.tracer.saved import Packed, pack
from tracegrad.tracer.saved_names import OfFunction
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.function import Function


_ONCE = (
    "saved_tensors can only be accessed once when clear_saved_tensors_on_access=True is set on the "
    "autograd.Function. Either access saved_tensors only once, or set "
    "clear_saved_tensors_on_access=False."
)


class FunctionCtx:
    """What `forward`, `setup_context` and `backward` of a `Function` share.

    Attributes:
        needs_input_grad: for each argument of `apply`, whether it is a tensor that needs a gradient.
    Example:
        >>> import tracegrad as tg
        >>> class Scaled(tg.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x, factor):
        ...         ctx.factor = factor
        ...         return x * factor
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         print(ctx.needs_input_grad)
        ...         return grad * ctx.factor, None
        >>> x = tg.ones(2, requires_grad=True)
        >>> Scaled.apply(x, 3).sum().backward()
        (True, False)
        >>> x.grad
        tensor([3., 3.])
    """

    needs_input_grad: tuple[bool, ...]
    _to_save: tuple[Any, ...] = ()
    _dirty: tuple[Any, ...] = ()
    _constant: tuple[Any, ...] = ()
    _materialize: bool = True
    _in_jvp: bool = False
    _for_forward: tuple[Any, ...] | None = None
    _accessed: bool = False

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors (inputs, outputs, others, None) for `backward`: see `saved_tensors`.

        Keep nothing else that way on `ctx`: only these are checked for later writes.
        """
        self._to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `jvp`, which finds them as `saved_tensors`; `backward` does not."""
        for tensor in tensors:
            if tensor is not None and not isinstance(tensor, Tensor):
                raise OperandError(
                    "save_for_forward expects all arguments to be tensors or None, but got "
                    f"{type(tensor).__name__}"
                )
        self._for_forward = tensors

    def mark_dirty(self, *args: Tensor) -> None:
        """Say which inputs `forward` wrote to; all of them must be returned."""
        self._dirty = args

    def mark_non_differentiable(self, *args: Tensor) -> None:
        """Say which outputs have no gradient; `backward` is given zeros for them."""
        self._constant = args

    def set_materialize_grads(self, value: bool) -> None:
        """Whether `backward` is given zeros (the default) or None where no cotangent came."""
        self._materialize = bool(value)


class FunctionNode(FunctionCtx, tape.BackwardNode):
    """The node of one application; a subclass is made for each `Function`."""

    runs_user_code = True
    _function: ClassVar[type[Function]]

    def __init__(self, args: Sequence[Any]) -> None:
        tensors = [x for x in args if isinstance(x, Tensor)]
        super().__init__([tape.gradient_edge(x) for x in tensors], ())
        self._is_tensor = [isinstance(x, Tensor) for x in args]
        self._input_types = [x.type_info for x in tensors]
        self._tensor_outputs: list[bool] = []
        self._saved: list[Any] | None = []
        recorded = state.grad_enabled
        self.needs_input_grad = tuple(isinstance(x, Tensor) and x.requires_grad for x in args)
        self._recorded = recorded and any(self.needs_input_grad)
        self._wanted = [e[0] is not None for e in self.edges]

    def needs(self, flags: Sequence[bool]) -> None:
        """Have gradients computed for more arguments than those that require grad themselves."""
        self.needs_input_grad = tuple(
            a or b for a, b in zip(self.needs_input_grad, flags, strict=True)
        )
        self._wanted = [
            need for need, is_tensor in zip(self.needs_input_grad, self._is_tensor) if is_tensor
        ]

    def kept_tensors(self) -> list[Tensor]:
        """The tensors that the context holds on to."""
        leaves: list[Any] = []
        flatten([*self.__dict__.values()], leaves)
        return [x for x in leaves if isinstance(x, Tensor)]

    # ---- what was saved -------------------------------------------------------------------------

    def _save(self, outputs: Sequence[Any]) -> None:
        """Keep what `save_for_backward` was given; outputs without a reference to themselves."""
        numbers = {id(t): k for k, t in enumerate(outputs) if isinstance(t, Tensor)}
        saved: list[Any] = []
        for i, tensor in enumerate(self._to_save):
            if tensor is None:
                saved.append(None)
            elif not isinstance(tensor, Tensor):
                raise OperandError(
                    f"save_for_backward can only save variables, but argument {i} is of type "
                    f"{type(tensor).__name__}"
                )
            elif state.saved_hooks and self._recorded:
                edge = tape.gradient_edge(tensor)
                place = numbers[id(tensor)] if edge[0] is self else edge
                saved.append((pack(tensor), place))
            elif id(tensor) in numbers and tensor._grad_fn is self:
                storage = tensor._storage
                saved.append((tensor._array, storage, storage.version, numbers[id(tensor)]))
            else:
                saved.append((tensor, tensor._storage.version))
        self._saved = saved
        self._to_save = ()

    def note_companions(self, recorder: Any, outputs: Sequence[Any]) -> None:
        """Packed outputs keep the companions that they have by now."""
        for saved in self._saved or ():
            if saved is not None and isinstance(saved[0], Packed) and isinstance(saved[1], int):
                saved[0].companions = recorder.companions(outputs[saved[1]])

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What `save_for_backward` was given; in `jvp`, what `save_for_forward` was.

        Raises:
            GradientError: the graph was freed, or one of the tensors was overwritten.
        """
        if self._in_jvp and self._for_forward is not None:
            return self._for_forward
        everything = self._saved  # read once: another thread may release the node
        if everything is None:
            raise GradientError(_ONCE if self._accessed else tape.FREED)
        if self._function.clear_saved_tensors_on_access:
            self._saved, self._accessed = None, True
        return tuple(None if s is None else self._restored(s) for s in everything)

    @property
    def _raw_saved_tensors(self) -> tuple[OfFunction, ...]:
        """What `save_for_backward` was given, as places that take hooks of their own."""
        if self._saved is None:
            raise GradientError(tape.FREED)
        return tuple(OfFunction(self, k) for k in range(len(self._saved)))

    def _restored(self, saved: Any) -> Tensor:
        if isinstance(saved[0], Packed):
            found = saved[0].unpack()
            if isinstance(saved[1], int):
                return self._own(found, saved[1])
            return _with_history(found, saved[1])
        if isinstance(saved[0], Tensor):
            tensor, version = saved
            if tensor._storage.version != version:
                edge = tape.gradient_edge(tensor)
                text = tape._overwritten(tensor._storage, version, edge, tensor.type_info)
                raise GradientError(text)
            return tensor
        array, storage, version, number = saved
        if storage.version != version:
            text = tape._overwritten(storage, version, (self, number), self.types[number])
            raise GradientError(text)
        return self._own(wrap(array, storage), number)

    def _own(self, given: Tensor, number: int) -> Tensor:
        """An output once more, with its history."""
        return _with_history(given, (self, number))

    def release(self) -> None:
        """Drop what was saved, if anything was."""
        self._saved = None

    # ---- the backward ---------------------------------------------------------------------------

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Call the user's `backward` and check what it returns."""
        cts = list(cotangents)
        if self._materialize:
            for k, ct in enumerate(cts):
                if ct is None and self._tensor_outputs[k]:
                    cts[k] = wrap(zeros_of(self.types[k]))
        result = self._function._derivative()(self, *cts)
        parts = list(result) if isinstance(result, tuple) else [result]
        return self._checked(parts)

    def _checked(self, parts: list[Any]) -> list[Tensor | None]:
        want = len(self._is_tensor)
        if len(parts) > want and all(p is None for p in parts[want:]):
            parts = parts[:want]
        if len(parts) != want:
            raise GradientError(
                f"function {self.name()} returned an incorrect number of gradients "
                f"(expected {want}, got {len(parts)})"
            )
        kept: list[Tensor | None] = []
        for i, (part, is_tensor) in enumerate(zip(parts, self._is_tensor, strict=True)):
            if is_tensor:
                kept.append(self._fitted(len(kept), part))
            elif part is not None:
                raise GradientError(
                    f"function {self.name()} returned a gradient different than None at position "
                    f"{i + 1}, but the corresponding forward input was not a Variable"
                )
        return kept

    def _fitted(self, index: int, part: Any) -> Tensor | None:
        """One gradient in the shape and dtype of its input."""
        if part is None or not self._wanted[index]:
            return None
        if not isinstance(part, Tensor):
            raise GradientError(f"expected Variable or None (got {type(part).__name__})")
        want = self._input_types[index]
        shape = part._array.shape
        if shape != want.shape:
            padded = (1,) * (len(shape) - len(want.shape)) + want.shape
            if len(shape) < len(want.shape) or any(
                w not in (1, n) for w, n in zip(padded, shape, strict=True)
            ):
                raise GradientError(
                    f"Function {self.name()} returned an invalid gradient at index {index} - got "
                    f"{list(shape)} but expected shape compatible with {list(want.shape)}"
                )
            part = ops.unbroadcast(part, want.shape)
        part = brought(index, part, want, f"Function {self.name()} returned an ")
        return part if part.dtype is want.dtype else part.to(want.dtype)


def _with_history(given: Tensor, edge: tape.Edge) -> Tensor:
    """Another tensor over the same memory, at a place in the tape."""
    return tape.placed(wrap(given._array, given._storage), edge)
