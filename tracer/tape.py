"""The tape: one node per recorded operation, and what each node must keep for its backward.

- `BackwardNode` is the interface that the engine runs; subclass it for a custom or compiled
  backward.
- `OperationNode` differentiates one primitive with the record's `vjp` rules.
- `AccumulateGrad` ends a path at a leaf and adds to its `.grad`.

What an `OperationNode` keeps is not declared anywhere: the rules are run once on symbolic values
(`reads`), and only the operands whose data the result depends on are kept. Start reading at
`BackwardNode`, then `Plan`.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tracegrad.ir import ops
from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.ir.graph import GraphBuilder, Value
from tracegrad.ir.operators import Operators
from tracegrad.ir.primitive import LINEAR, Primitive
from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.ir.types import TensorType
from tracegrad.tracer.anomaly import anomaly, remember
from tracegrad.tracer.array_rules import ArrayRule, array_rule, as_array, bound, is_exact, zeros_of
from tracegrad.tracer.hooks import NodeHooks, RemovableHandle, hooks_of
from tracegrad.tracer.saved import Packed
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import Storage
from tracegrad.tracer.tensor import Tensor, literal, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.tensor import Tensor

Edge = tuple["BackwardNode | None", int]
Saved = tuple[Any, "Storage | None", int]  # array (or NumPy scalar), its storage, version when kept

NO_EDGE: Edge = (None, 0)
next_sequence = itertools.count().__next__

FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been freed). Saved intermediate values of the graph are freed when you call "
    ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
    "graph a second time or if you need to access saved tensors after calling backward."
)


class BackwardNode:
    """One step of the backward pass: cotangents of outputs in, cotangents of inputs out.

    To attach a backward of your own to tensors, subclass it, give it edges, and call
    `attach(node, tensors)`. The engine runs nodes from the newest to the oldest, each once, when
    all cotangents of its outputs have been summed.

    Attributes:
        edges: for each input, `gradient_edge(input)`: the node that takes its cotangent, and which
            output of that node the input is; `(None, 0)` where it needs none.
        types: type of each output; the engine checks cotangents against it.
        sequence: creation order; a node's edges always lead to older nodes.
        retained: the tensors that asked for `retain_grad()`, by output number.
        hooks: the user's functions to call while the node runs; None where there are none.
        runs_user_code: its `apply` may write to the cotangents that it is given.
        homeward: it moves the gradient of a number that a device computed with to the host.
        gradients: what `hand_over` gives to the leaves, where they are computed already.
    Example:
        >>> import tracegrad as tg
        >>> class Tenfold(tg.autograd.BackwardNode):
        ...     def apply(self, cotangents, create_graph):
        ...         return [cotangents[0] * 10]
        >>> x = tg.ones(2, requires_grad=True)
        >>> y = x.detach() * 1
        >>> attach(Tenfold([tg.autograd.gradient_edge(x)], [y.type_info]), (y,))
        >>> y.sum().backward()
        >>> x.grad
        tensor([10., 10.])
    """

    __slots__ = ("edges", "types", "sequence", "retained", "hooks", "_metadata", "__weakref__")
    runs_user_code = False
    homeward = False
    gradients: Any = None

    def __init__(self, edges: Sequence[Edge], types: Sequence[TensorType]) -> None:
        self.edges = tuple(edges)
        self.types = tuple(types)
        self.sequence = next_sequence()
        self.retained: dict[int, Any] | None = None
        self.hooks: NodeHooks | None = None
        if anomaly.enabled:
            remember(self)

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> Sequence[Tensor | None]:
        """Cotangents of the inputs, one per edge, from those of the outputs.

        Args:
            cotangents: one per output; None where nothing depends on that output.
            create_graph: whether the computation itself is to be differentiable. The engine has
                set the grad mode accordingly: operations on Tensors are recorded exactly then.
        Returns:
            One Tensor of the input's shape and dtype per edge; None means zero.
        """
        raise NotImplementedError

    def owns(self, part: Tensor, cotangents: Sequence[Tensor | None]) -> bool:
        """True where the memory of `part`, which `apply` returned, is nobody else's.

        The engine may then keep it as `.grad` or add to it in place. Asked before `release`.
        """
        return False

    def hand_over(self, output: Tensor, keep: bool) -> bool:
        """Do the whole backward of a scalar output, whose gradients are there; False if it cannot."""
        return False

    def release(self) -> None:
        """Drop what was kept for the backward; a later `apply` must raise `GradientError`."""

    def name(self) -> str:
        """The name that PyTorch prints, e.g. `MulBackward0`."""
        return type(self).__name__

    @property
    def shown(self) -> Sequence[int]:
        """Which of the edges the user sees: those of what PyTorch's node of the name has as inputs."""
        return range(len(self.edges))

    @property
    def next_functions(self) -> tuple[Edge, ...]:
        """`(node, output number)` per input; `(None, 0)` where no gradient flows."""
        return tuple(self.edges[i] for i in self.shown)

    @property
    def requires_grad(self) -> bool:
        """True: a value without gradient has no node."""
        return True

    @property
    def _input_metadata(self) -> tuple[TensorType, ...]:
        """Shape, dtype and device of each cotangent that the node takes."""
        return self.types

    def _sequence_nr(self) -> int:
        """The order of its making: later nodes have greater numbers."""
        return self.sequence

    @property
    def metadata(self) -> dict[str, Any]:
        """A dictionary for whatever the user wants to keep with the node."""
        try:
            return self._metadata
        except AttributeError:
            self._metadata: dict[str, Any] = {}
            return self._metadata

    def register_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(grad_inputs, grad_outputs)` when the node has run; it may return another
        tuple of grad_inputs.
        """
        return RemovableHandle(self._own_hooks("register_hook()").post, hook)

    def register_prehook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(grad_outputs)` before the node runs; it may return another tuple."""
        return RemovableHandle(self._own_hooks("register_prehook()").pre, hook)

    def _own_hooks(self, what: str) -> NodeHooks:
        if state.recorder is not None:
            state.recorder.note(f"{what} of a node")
        return hooks_of(self)

    def __repr__(self) -> str:
        return f"<{self.name().rpartition('::')[2]} object at {hex(id(self))}>"

    def __call__(self, *cotangents: Tensor | None) -> Any:
        """The cotangents of the inputs from those of the outputs; hooks are left out.

        Returns:
            One tensor (or None), or a tuple of several, recorded in grad mode. A leaf's node adds to
            `.grad` and returns `()`.
        Raises:
            OperandError: not as many tensors (or None) as the node has outputs.
            GradientError: the graph was freed.
        """
        wanted = max(1, len(self.types))
        for i, ct in enumerate(cotangents):
            if ct is not None and not isinstance(ct, Tensor):
                raise OperandError(f"argument {i} is not a Variable")
        if len(cotangents) != wanted:
            raise OperandError(f"expected {wanted} arguments, got {len(cotangents)} instead")
        return self._called([*cotangents])

    def _called(self, cotangents: list[Tensor | None]) -> Any:
        if all(ct is None for ct in cotangents) and not self.runs_user_code:
            parts: Sequence[Tensor | None] = [None] * len(self.edges)
        else:
            parts = self.apply(cotangents, state.grad_enabled)
        found = tuple(parts[i] for i in self.shown)
        return found[0] if len(found) == 1 else found


class AccumulateGrad(BackwardNode):
    """The end of a path: adds the cotangent to `.grad` of a leaf, `variable`."""

    __slots__ = ("variable",)

    def __init__(self, variable: Tensor) -> None:
        super().__init__((), ())
        self.variable = variable

    def name(self) -> str:
        """PyTorch's name of it."""
        return "torch::autograd::AccumulateGrad"

    @property
    def _input_metadata(self) -> tuple[TensorType, ...]:
        """Shape, dtype and device of the leaf."""
        return (self.variable.type_info,)

    def _sequence_nr(self) -> int:
        """The greatest number, as in PyTorch: leaves are ready at any time."""
        return 2**64 - 1

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {hex(id(self))}>"

    def _called(self, cotangents: list[Tensor | None]) -> Any:
        from tracegrad.tracer.accumulate import accumulate

        if cotangents[0] is not None:
            accumulate(self.variable, cotangents[0], state.grad_enabled, fresh=False)
        return ()


def gradient_edge(tensor: Tensor) -> Edge:
    """Where the cotangent of `tensor` goes: its node, or the accumulator of a leaf.

    Returns:
        A pair: a `BackwardNode` and the number of the output of it that `tensor` is; `(None, 0)` where
        the tensor does not require grad. `autograd.graph.get_gradient_edge` refuses that.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> tg.autograd.gradient_edge(x * 2)
        (<MulBackward0 object at ...>, 0)
    """
    node = tensor.grad_fn
    if node is not None:
        return (node, tensor._output_nr)
    return leaf_edge(tensor) if tensor._requires_grad else NO_EDGE


def leaf_edge(leaf: Tensor) -> Edge:
    """Where the cotangent of a tensor that requires grad and has no node goes: its accumulator.

    Of a view that requires grad only because its base does, nowhere.
    """
    view = leaf._view
    return NO_EDGE if view is not None and view.borrowed else (accumulator(leaf), 0)


def accumulator(leaf: Tensor) -> AccumulateGrad:
    """The one AccumulateGrad of a leaf; kept alive by the graphs that use it."""
    kept = leaf._accumulator
    node = kept() if kept is not None else None
    if node is None:
        with _one_each:  # of two threads that use a leaf first, one makes its node
            kept = leaf._accumulator
            node = kept() if kept is not None else None
            if node is None:
                node = AccumulateGrad(leaf)
                leaf._accumulator = weakref.ref(node)
    return node


def forget_accumulator(leaf: Tensor) -> bool:
    """Drop the reference to an accumulator that is gone; whether there is none now."""
    kept = leaf._accumulator
    if kept is None or kept() is not None:
        return kept is None
    with _one_each:
        if leaf._accumulator is kept:
            leaf._accumulator = None
        return leaf._accumulator is None


_one_each = threading.RLock()


def placed(tensor: Tensor, edge: Edge) -> Tensor:
    """`tensor`, freshly wrapped, with its gradient going to `edge`: a leaf again, or a result."""
    node = edge[0]
    if node is None:
        return tensor
    tensor._requires_grad = True
    if type(node) is AccumulateGrad:
        tensor._accumulator = weakref.ref(node)
    else:
        tensor._grad_fn, tensor._output_nr = edge
    return tensor


def attach(node: BackwardNode, tensors: Sequence[Tensor]) -> None:
    """Make `tensors` the outputs of `node`, in order; those of integer dtype stay outside."""
    for number, tensor in enumerate(tensors):
        if tensor.dtype.is_floating_point:
            tensor._requires_grad = True
            tensor._grad_fn = node
            tensor._output_nr = number


# ---- nodes of primitives ------------------------------------------------------------------------


_SHOWN = {
    "PowBackward0": (0,), "PowBackward2": (1,), "ClampBackward1": (0,), "ClampMinBackward0": (0,),
    "ClampMaxBackward0": (0,), "FmodBackward0": (0,), "RemainderBackward0": (0,),
    "RsubBackward1": (1,), "Deg2RadBackward0": (0,), "Rad2DegBackward0": (0,),
    "TrilBackward0": (1,), "TriuBackward0": (1,), "MaskedFillBackward0": (2,),
    "MaskedFillBackward1": (2, 1),
}  # fmt: skip


Abroad = tuple[tuple[int, TensorType], ...]


def numbers_abroad(types: Sequence[TensorType], device: str) -> Abroad:
    """Places of the operands in host memory of what a device computes, and types of their gradients."""
    if device == "cpu":
        return ()
    return tuple((i, replace(t, device=device)) for i, t in enumerate(types) if t.device == "cpu")


def beyond(edge: Edge) -> Edge:
    """Where the gradient of the operand itself goes: past the move of a number's to the host."""
    node = edge[0]
    return node.edges[0] if node is not None and node.homeward else edge


class OperationNode(BackwardNode):
    """The backward of one application of a primitive."""

    __slots__ = ("plan", "params", "wanted", "saved")

    def __init__(
        self, plan: Plan, params: Mapping[str, Any], edges: tuple[Edge, ...], wanted: int,
        saved: tuple[Saved, ...] | None,
    ) -> None:  # fmt: skip
        self.edges = plan.homeward(edges) if plan.abroad else edges
        self.types = plan.out_types
        self.sequence = next_sequence()
        self.retained = None
        self.hooks = None
        self.plan = plan
        self.params = params
        self.wanted = wanted
        self.saved: tuple[Saved | Packed, ...] | None = saved
        if anomaly.enabled:
            remember(self)

    @property
    def shown(self) -> Sequence[int]:
        """Operands that can have a gradient; not the numbers that PyTorch keeps as attributes."""
        listed = _SHOWN.get(type(self).__name__)
        if listed is not None:
            return listed
        return [i for i, t in enumerate(self.plan.types) if t.dtype.is_floating_point]

    def rename(self, name: str) -> None:
        """Take the name that PyTorch prints for what the operation is part of."""
        self.__class__ = node_class(name)

    def owns(self, part: Tensor, cotangents: Sequence[Tensor | None]) -> bool:
        """True for fresh memory: no view, no cotangent, nothing that was kept."""
        array = part._array
        if array.base is not None or not array.flags.writeable:
            return False
        others = [c._array for c in cotangents if c is not None]
        for s in self.saved or ():
            if isinstance(s, Packed):
                return False
            others.append(s[0])
        return all(array is not x for x in others)

    def __getattr__(self, name: str) -> Any:
        """`_saved_...` and `_raw_saved_...`: what was kept, under PyTorch's names."""
        from tracegrad.tracer.saved_names import saved_attribute

        return saved_attribute(self, name)

    def __dir__(self) -> list[str]:
        """The names that PyTorch has for what was kept, too."""
        from tracegrad.tracer.saved_names import saved_names

        return [*super().__dir__(), *saved_names(self)]

    def release(self) -> None:
        """Drop what was kept, if anything was: a node that kept nothing can run again."""
        if self.saved:
            self.saved = None

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Evaluate the record's vjp rules of the operands that need a cotangent."""
        plan = self.plan
        ct = cotangents[0]
        out, args = self._operands(create_graph)
        result: list[Tensor | None] = []
        for i, edge in enumerate(self.edges):
            part = None
            if edge[0] is not None:
                part = plan.op.cotangent(i, ct, out, args, self.params)
                if part is None:
                    part = literal(zeros_of(plan.types[i]))
                elif part._array.shape != plan.types[i].shape:
                    part = ops.unbroadcast(part, plan.types[i].shape)
            result.append(part)
        return result

    def parts(self, ct: Tensor) -> list[tuple[Tensor, bool] | None] | None:
        """As `apply` without history, straight on arrays, and whether each result is fresh memory.

        None where that cannot be done: a hook keeps the values, or one was overwritten.
        """
        saved = self.saved
        if saved is None:
            raise GradientError(FREED)
        rule = self.plan._rules.get(self.wanted) or self.plan.rule(self.wanted)
        given = ct._array
        arrays = [given]
        for s in saved:
            if s.__class__ is Packed:
                return None
            array, storage, version = s  # type: ignore[misc]
            if storage is None:
                array = as_array(array)
            elif storage.version != version:
                return None
            arrays.append(array)
        token = QUIET.set(IGNORE)
        try:
            found = rule.run(*arrays)
        finally:
            QUIET.reset(token)
        result: list[tuple[Tensor, bool] | None] = []
        for array, fresh in zip(found, rule.fresh):
            if array is None:
                result.append(None)
            else:
                result.append((ct if array is given else wrap(array), fresh))
        return result

    def edge(self, place: int) -> Edge:
        """Where the gradient of what is kept at `place` (see `Plan.kept`) goes."""
        return (self, 0) if place == len(self.plan.types) else beyond(self.edges[place])

    def _operands(self, create_graph: bool) -> tuple[Any, list[Any]]:
        """The result and the operands, as far as they were kept; stand-ins for the others."""
        everything = self.saved  # read once: another thread may release the node
        if everything is None:
            raise GradientError(FREED)
        args: list[Any] = list(self.plan.stand_ins)
        for i, saved in zip(self.plan.kept(self.wanted), everything, strict=True):
            args[i] = self._unpack(saved, self.edge(i), self.plan.all_types[i], create_graph)
        return args.pop(), args

    def _unpack(
        self, saved: Saved | Packed, edge: Edge, type: TensorType, create_graph: bool
    ) -> Tensor:
        if isinstance(saved, Packed):
            given = saved.unpack()
            saved = (given._array, given._storage, given._storage.version)
        array, storage, version = saved
        if storage is None:
            return literal(as_array(array))
        if storage.version != version:
            raise GradientError(_overwritten(storage, version, edge, type))
        tensor = wrap(array, storage)
        return placed(tensor, edge) if create_graph else tensor


_TENSOR_NAMES = {
    "float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool", "uint32": "UInt32",
}  # fmt: skip


def scalar_type_name(dtype: Any) -> str:
    """PyTorch's word for a dtype: `Float`, `Long`."""
    return _TENSOR_NAMES[dtype.name]


def _overwritten(storage: Storage, version: int, edge: Edge, type: TensorType) -> str:
    """PyTorch's text, and who did it."""
    shape = ", ".join(map(str, type.shape))
    node, number = edge
    whose = ""
    if node is not None and not isinstance(node, AccumulateGrad):
        whose = f", which is output {number} of {node.name()},"
    text = (
        "one of the variables needed for gradient computation has been modified by an inplace "
        f"operation: [torch.{scalar_type_name(type.dtype)}Tensor [{shape}]]{whose} is at version "
        f"{storage.version}; expected version {version} instead. Hint: enable anomaly detection to "
        "find the operation that failed to compute its gradient, with "
        "torch.autograd.set_detect_anomaly(True)."
    )
    change = storage.change_after(version)
    if change is None:
        return text
    where = f" at {change.location} ({change.location.text})" if change.location else ""
    plain = change.name.rstrip("_")
    return f"{text} It was modified by {change.name}{where}; clone() it before, or use {plain}."


def node_class(name: str) -> type[OperationNode]:
    """The class of nodes called `name`, made on first use."""
    found = _classes.get(name)
    if found is None:
        found = _classes[name] = type(name, (OperationNode,), {"__slots__": ()})
    return found


_classes: dict[str, type[OperationNode]] = {}


# ---- plans: what is known about an operation on operands of given types -------------------------


class _StandIn(Operators):
    """An operand that was not kept: shape and dtype, no data."""

    __slots__ = ("type", "op")

    def __init__(self, op: Primitive, type: TensorType) -> None:
        self.op = op
        self.type = type

    shape = property(lambda self: self.type.shape)
    dtype = property(lambda self: self.type.dtype)
    device = property(lambda self: self.type.device)
    ndim = property(lambda self: len(self.type.shape))

    @staticmethod
    def __tracegrad_bind__(op: Primitive, operands: Sequence[Any], params: Any) -> Any:
        if not operands:  # a constant like an operand: it reads only the shape
            from tracegrad.tracer.dispatch import dispatch

            return dispatch(op, operands, params)
        mine = next(x for x in operands if isinstance(x, _StandIn))
        raise AssertionError(
            f"the vjp rule of {mine.op.name} reads an operand (in {op.name}) that it did not read "
            "when it was analysed: a rule may depend on shapes, dtypes and parameters only"
        )


def stand_in(op: Primitive, type: TensorType) -> Any:
    """An operand of `op` for vjp rules that look at its shape and dtype only."""
    return _StandIn(op, type)


class Plan:
    """What the dispatcher knows of one primitive applied to operands of given types.

    Attributes:
        types, out_type: types of the operands and of the result (`out_types` as a 1-tuple).
        takes: bit i is set where operand i can pass a gradient on.
        node: class of the backward node.
        kernel: the eager kernel for these dtypes, its parameters filled in.
        place: (of the constructor) the device of a result that has no operands.
        plain: its result is an array of memory of its own, of the right dtype.
    """

    __slots__ = ("op", "types", "out_type", "out_types", "all_types", "takes", "node", "stand_ins",
                 "dtype", "views", "kernel", "plain", "abroad", "_params", "_kept", "_rules")  # fmt: skip

    def __init__(
        self, op: Primitive, types: tuple[TensorType, ...], params: Mapping[str, Any],
        place: int | None = None,
    ) -> None:  # fmt: skip
        self.op = op
        self.types = types
        self.out_type = op.infer(types, params)
        if place is not None:
            self.out_type = replace(self.out_type, device=f"cuda:{place}")
        self.out_types = (self.out_type,)
        self.all_types = (*types, self.out_type)
        self.dtype = self.out_type.dtype.numpy
        self.views = op.family == "movement"
        self.takes = 0
        if self.out_type.dtype.is_floating_point:
            for i, t in enumerate(types):
                if op.has_history(i) and t.dtype.is_floating_point:
                    self.takes |= 1 << i
        self.node = node_class(op.grad_name(params))
        self.stand_ins = tuple(_StandIn(op, t) for t in self.all_types)
        self.kernel = bound(op, types, params, self.out_type)
        self.plain = is_exact(self.kernel, types, self.out_type)
        self.abroad = numbers_abroad(types, self.out_type.device)
        self._params = params
        self._kept: dict[int, tuple[int, ...]] = {}
        self._rules: dict[int, ArrayRule] = {}

    def homeward(self, edges: Sequence[Edge]) -> tuple[Edge, ...]:
        """The edges of a node, with moves before those of numbers in host memory."""
        from tracegrad.tracer.moving import homeward

        return homeward(edges, self.abroad)

    def rule(self, wanted: int) -> ArrayRule:
        """The backward for the gradients `wanted`, on arrays."""
        found = self._rules.get(wanted)
        if found is None:
            made = array_rule(self.op, self.types, self._params, wanted, self.kept(wanted))
            found = self._rules[wanted] = made
        return found

    def kept(self, wanted: int) -> tuple[int, ...]:
        """Positions of the operands (and, last, the result) to keep for the gradients `wanted`."""
        found = self._kept.get(wanted)
        if found is None:
            found = self._kept[wanted] = reads(self.op, self.types, self._params, wanted)
        return found


def reads(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], wanted: int
) -> tuple[int, ...]:
    """The operands whose data the vjp rules of the operands in bit set `wanted` depend on.

    Runs the rules on symbolic values and walks back from their results. The position after the
    last operand stands for the result of the operation.
    """
    if len(types) == 1 and op.jvp == (LINEAR,):
        return ()  # the transpose of a linear map does not depend on where it is taken
    builder = GraphBuilder()
    args = [builder.input(t) for t in types]
    out = builder.input(op.infer(types, params))
    ct = builder.input(out.type)
    with builder:
        live: set[Value] = set()
        for i in range(len(types)):
            if wanted >> i & 1:
                part = op.cotangent(i, ct, out, args, params)
                if isinstance(part, Value):
                    live.add(part)
    for node in reversed(builder.nodes):
        if node.out in live:
            live.update(node.inputs)
    return tuple(i for i, v in enumerate((*args, out)) if v in live)
