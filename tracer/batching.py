"""Batching: a function runs for one example, and in step with it for all of them.

`Examples` is the lockstep whose companions are batches: tensors with a new first axis, whose first
element is what the function sees. What is the same for all examples has no companion and is
computed once. `func.vmap` runs functions under it. Start reading at `Examples.record`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.errors import GradientError
from tracegrad.ir.passes.batch import batched_result
from tracegrad.ir.primitive import TABLE, bind
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.tracer import function_batch, inplace
from tracegrad.tracer.joining import stack
from tracegrad.tracer.lockstep import Lockstep, own_array
from tracegrad.tracer.shapes import movedim
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.ir.primitive import Primitive
    from tracegrad.tracer.capture_hook import Recorder
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.random import Generator
    from tracegrad.tracer.views import Region

_ITEM = (
    "vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over calling "
    ".item() on a Tensor, please try to rewrite what you're doing with other operations. If error is "
    "occurring somewhere inside PyTorch internals, please file a bug report."
)
_BOOL = (
    "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow. We "
    "don't support that yet, please file an issue at https://github.com/pytorch/pytorch/issues ."
)
_MASK = (
    "vmap: We do not support batching operators that can support dynamic shape. Attempting to batch "
    "over indexing with a boolean mask."
)
_NONZERO = (
    "vmap: We do not support batching operators that can output dynamic shape. Attempted to vmap "
    "over aten::nonzero. Please file an issue at https://github.com/pytorch/pytorch/issues if you "
    "need this feature."
)
_READS = {
    "item": _ITEM, "int": _ITEM, "float": _ITEM, "index": _ITEM, "bool": _BOOL,
    "mask index": _MASK, "nonzero": _NONZERO,
}  # fmt: skip
_VALUES = (
    "vmap: {what} reads the values of a tensor that differ between the examples; the function runs "
    "once for all of them: express it with operations on tensors, or loop over the examples"
)
_INPLACE = (
    "vmap: inplace arithmetic(self, *extra_args) is not possible because there exists a Tensor "
    "`other` in extra_args that has more elements than `self`. This happened due to `other` being "
    "vmapped over but `self` not being vmapped over in a vmap. Please try to use out-of-place "
    "operators instead of inplace arithmetic. If said operator is being called inside the PyTorch "
    "framework, please file a bug report instead."
)
_RANDOM = (
    "vmap: called random operation while in randomness error mode. Please either use the 'same' or "
    "'different' randomness flags on vmap or perform the randomness operation out of vmap"
)


class Examples(Lockstep):
    """Carries batches along while it is the recorder.

    Attributes:
        size: number of examples.
        randomness: "error", "different" (each example draws numbers of its own) or "same".
    """

    def __init__(self, size: int, randomness: str, connected: bool) -> None:
        super().__init__(connected)
        self.size = size
        self.randomness = randomness
        self._local: dict[int, weakref.ref[np.ndarray]] = {}  # made inside, the same for all
        self._made: list[weakref.ref[Tensor]] = []  # tensors that mean nothing outside
        self._functions: list[FunctionNode] = []  # whose backward runs later, on examples

    # ---- examples and batches -------------------------------------------------------------------

    def example(self, many: Tensor, dim: int) -> Tensor:
        """One example of a batch that runs along dimension `dim`; zeros where there is none."""
        with self.outside():
            batch = movedim(many, dim, 0) if dim else many
        array = many._array
        shape = array.shape[:dim] + array.shape[dim + 1 :]
        if self.size:
            first: Any = array[(slice(None),) * dim + (0,)]
            made = wrap(
                first.copy() if first.__class__ is DeviceArray else np.array(first, order="C")
            )
        else:
            made = wrap(np.zeros_like(array, shape=shape))
        self.accompany(made, batch)
        self._made.append(weakref.ref(made))
        return made

    def batch(self, x: Tensor) -> Tensor:
        """The values of all examples, along a new first axis."""
        many = self.companion(x)
        if many is not None:
            return many
        with self.outside():
            return x.expand(self.size, *x.shape)

    def moved(self, op: Primitive, companion: Tensor, params: Mapping[str, Any]) -> Tensor:
        """The batch of a movement operation's result."""
        made: Tensor = op.batch(self.size, (True,), companion, **params)  # type: ignore[operator]
        return made

    def region(self, region: Region, companion: Tensor, params: Mapping[str, Any]) -> Tensor:
        """The batch of a region: the same one, a dimension further in."""
        return super().region(region, companion, region.batched(params))

    # ---- the protocol ---------------------------------------------------------------------------

    def record(
        self, op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
    ) -> None:
        """Compute the batch of a result; what is the same for all examples goes on outside."""
        batches = [self.companion(x) for x in operands]
        if all(m is None for m in batches):
            super().record(op, operands, params, out)
            if op is not TABLE["detach"] or self._is_local(operands[0]):  # else memory from outside
                self._remember_local(out)
            return
        own_array(out, operands)
        self._made.append(weakref.ref(out))
        with self.outside():
            made = self._batched(op, operands, batches, params, out)
            if op is TABLE["detach"]:  # the same memory, as of the example
                self.accompany(out, made)
            else:
                self.keep(out, made, batches)

    def _batched(
        self, op: Primitive, operands: Sequence[Any], batches: Sequence[Tensor | None],
        params: Mapping[str, Any], out: Tensor,
    ) -> Tensor:  # fmt: skip
        if op is TABLE["detach"]:
            assert batches[0] is not None, "its one operand is batched"
            return batches[0].detach()
        given = [x if m is None else m for x, m in zip(operands, batches, strict=True)]
        if op.family == "random":
            return self._drawn(op, given, batches, params)
        flags = tuple(m is not None for m in batches)
        made: Tensor = batched_result(op, self.size, flags, given, params, out.type_info)
        return made

    def _drawn(
        self, op: Primitive, given: list[Any], batches: Sequence[Tensor | None],
        params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """Random numbers: one draw for all examples, or the same draw for each."""
        if batches[-1] is None:  # the state is the same, a parameter differs
            return stack([bind(op, (p, given[1]), params) for p in given[0].unbind(0)])
        if len(given) == 1:
            return bind(op, tuple(given), {**params, "shape": (self.size, *params["shape"])})
        p = given[0] if batches[0] is not None else given[0].expand(self.size, *given[0].shape)
        return bind(op, (p, given[1]), params)

    def random_state(self, tensor: Tensor, generator: Generator) -> None:
        """Refuse random numbers, or mark the state as one to draw for all examples from."""
        if self.randomness == "error":
            raise GradientError(_RANDOM)
        super().random_state(tensor, generator)
        if self.randomness == "different":
            self.accompany(tensor, tensor)

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """Write all examples."""
        have, new = self.companion(target), self.companion(value)
        if have is None and new is None:
            super().record_inplace(name, target, value)
            return
        if have is None:
            have = self._spread(target)
        with self.outside():
            self.part_of_base(name, target, have)
            inplace.check_writable(have, name=name)
            inplace.write(name, have, value if new is None else new)

    def check_write(self, name: str, target: Tensor, value: Tensor) -> None:
        """Refuse to write what differs between the examples to a tensor from outside.

        Raises:
            GradientError: it is one.
        """
        super().check_write(name, target, value)
        if self.companion(value) is not None and self.companion(target) is None:
            if not self._is_local(target):
                raise GradientError(_INPLACE)

    def _spread(self, target: Tensor) -> Tensor:
        """Give a tensor that was the same for all examples memory for each of them.

        Raises:
            GradientError: it comes from outside of the function.
        """
        base = target if target._view is None else target._view.base
        if not self._is_local(target):
            raise GradientError(_INPLACE)
        with self.outside():
            self.accompany(base, base.expand(self.size, *base.shape).clone().contiguous())
        self._made.append(weakref.ref(base))
        found = self.companion(target)
        assert found is not None, "a view follows its base"
        return found

    def value_read(self, tensor: Tensor, what: str) -> None:
        """Refuse to show the values of one example as if they were those of all."""
        if self.companion(tensor) is not None:
            raise GradientError(_READS.get(what) or _VALUES.format(what=what))
        super().value_read(tensor, what)

    def varies(self, tensor: Tensor) -> bool:
        """Whether it has a batch."""
        return self.companion(tensor) is not None or super().varies(tensor)

    def constant(self, tensor: Tensor) -> None:
        """A tensor made inside the function."""
        super().constant(tensor)
        self._remember_local(tensor)

    def alias(self, made: Tensor, tensor: Tensor) -> None:
        """What is made inside the function stays so in other memory."""
        super().alias(made, tensor)
        if self._is_local(tensor):
            self._remember_local(made)

    def _is_local(self, tensor: Tensor) -> bool:
        base = tensor if tensor._view is None else tensor._view.base
        return id(base._array) in self._local

    def _remember_local(self, tensor: Tensor) -> None:
        key, local = id(tensor._array), self._local

        def forget(_: object) -> None:
            local.pop(key, None)

        local[key] = weakref.ref(tensor._array, forget)

    def shown(self, tensor: Tensor) -> str | None:
        """All examples, in PyTorch's words."""
        many = self.companion(tensor)
        if many is None:
            return super().shown(tensor)
        with self.outside():
            text = repr(many)
        level, above = 1, self.above
        while above is not None:
            level += isinstance(above, Examples)
            above = above.above if isinstance(above, Lockstep) else None
        lines = "\n".join("    " + line for line in text.split("\n"))
        return f"BatchedTensor(lvl={level}, bdim=0, value=\n{lines}\n)"

    # ---- functions that the user wrote ----------------------------------------------------------

    def for_function(self, node: FunctionNode, args: Sequence[Any]) -> Recorder | None:
        """Nobody where the function has a `vmap`; this one where the batch is to be traced."""
        batches = [self.companion(x) for x in args]
        if all(m is None for m in batches):
            return super().for_function(node, args)
        if not function_batch.is_traced(node._function):
            return None
        node.needs([m is not None and m.requires_grad for m in batches])
        return self

    def function(self, node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> None:
        """The batch of each output, by the function's own `vmap` or as it was traced."""
        batches = [self.companion(x) for x in args]
        if all(m is None for m in batches):
            super().function(node, args, outputs)
            return
        self._made.extend(weakref.ref(x) for x in outputs if isinstance(x, Tensor))
        with self.outside():
            if not function_batch.is_traced(node._function):
                given = [x if m is None else m for x, m in zip(args, batches, strict=True)]
                flags = [m is not None for m in batches]
                found = function_batch.by_own_rule(
                    node, given, flags, self.size, self.randomness, outputs
                )
                for out, many in zip(outputs, found, strict=True):
                    if many is not None:
                        self.accompany(out, many)
            elif function_batch.attach_backward(self, node, args, outputs):
                self._functions.append(node)

    def again(self, connected: bool) -> Examples:
        """Another run on the same examples: the backward of a function that was traced here."""
        made = Examples(self.size, self.randomness, connected)
        made._kept = self._kept
        return made

    # ---- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Make tensors that escaped from the function say so when they are used."""
        kept = {id(x) for node in self._functions for x in node.kept_tensors()}
        for reference in self._made:
            tensor = reference()
            if tensor is not None and id(tensor) not in kept and type(tensor) is Tensor:
                tensor.__class__ = Escaped
                del tensor._array


class Escaped(Tensor):
    """What is left of a tensor inside `vmap` after the call: it has the values of one example."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise GradientError(
            "a tensor has escaped from inside a function being vmapped, where it stood for one "
            "example; return it from the function instead of storing it elsewhere"
        )

    def __repr__(self) -> str:
        return "<a tensor that escaped from vmap>"
