"""PyTorch's names for what a node keeps: `grad_fn._saved_self`, `_saved_result`, `_raw_saved_self`.

`TENSORS` says which operand a name stands for, `OTHERS` how a name is read off the parameters and
types. A name that PyTorch has for another way to compute the same gradient is not there, and a
tensor that this node does not need for its backward is None. Start reading at `saved_attribute`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.tracer.array_rules import as_array
from tracegrad.tracer.saved import Packed, pack_with

if TYPE_CHECKING:
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.hooks import Hook
    from tracegrad.tracer.tape import OperationNode
    from tracegrad.tracer.tensor import Tensor

RESULT = -1  # the position of what the operation returned

_OF_SELF = ("Abs Acos Acosh Asin Asinh Atan Atanh Cos Cosh Digamma Erf Lgamma Log Log10 "
            "Log1P Log2 Sin Sinh")  # fmt: skip
_OF_RESULT = "Exp Exp2 Expm1 Reciprocal Rsqrt Sigmoid Sqrt Tan Tanh"
_OF_TWO = "Atan2 Div Maximum Minimum Mul"

TENSORS: dict[str, dict[str, int]] = {
    **{f"{name}Backward0": {"self": 0} for name in _OF_SELF.split()},
    **{f"{name}Backward0": {"result": RESULT} for name in _OF_RESULT.split()},
    **{f"{name}Backward0": {"self": 0, "other": 1} for name in _OF_TWO.split()},
    "FmodBackward1": {"self": 0, "other": 1},
    "RemainderBackward1": {"self": 0, "other": 1},
    "ReluBackward0": {"result": RESULT},
    "HypotBackward0": {"self": 0, "other": 1, "result": RESULT},
    "CopysignBackward0": {"self": 0, "result": RESULT},
    **{f"PowBackward{k}": {"self": 0, "exponent": 1, "result": RESULT} for k in (0, 1, 2)},
    "ClampBackward1": {"self": 0, "min": 1, "max": 2},
    "WhereBackward0": {"condition": 0},
    "MaskedFillBackward0": {"mask": 0},
    "ProdBackward0": {"self": 0, "result": RESULT},
    "ProdBackward1": {"self": 0, "result": RESULT},
    "MaxBackward1": {"self": 0, "result": RESULT},
    "MinBackward1": {"self": 0, "result": RESULT},
    "AmaxBackward0": {"self": 0, "result": RESULT},
    "AminBackward0": {"self": 0, "result": RESULT},
    "MmBackward0": {"self": 0, "mat2": 1},
    "MvBackward0": {"self": 0, "vec": 1},
    "DotBackward0": {"self": 0, "tensor": 1},
    "VdotBackward0": {"self": 0, "other": 1},
    "BmmBackward0": {"self": 0, "mat2": 1},
    "ConvolutionBackward0": {"input": 0, "weight": 1},
}
_NUMBERS = {("PowBackward0", "exponent"), ("PowBackward2", "self"),
            ("ClampBackward1", "min"), ("ClampBackward1", "max")}  # fmt: skip


def _sizes(node: OperationNode) -> Any:
    return node.plan.types[0].shape


def _reduction(node: OperationNode) -> Any:
    return node.params["axes"]


def _keepdim(node: OperationNode) -> Any:
    return node.params["keepdims"]


def _first_axis(node: OperationNode) -> Any:
    return node.params["axes"][0]


def _parameter(name: str) -> Callable[[OperationNode], Any]:
    return lambda node: node.params[name]


_REDUCTION: dict[str, Callable[[OperationNode], Any]] = {"dim": _reduction, "keepdim": _keepdim}
OTHERS: dict[str, dict[str, Callable[[OperationNode], Any]]] = {
    "SumBackward0": {"self_sym_sizes": _sizes},
    "SumBackward1": {"self_sym_sizes": _sizes, **_REDUCTION},
    "MeanBackward0": {"self_sym_sizes": _sizes, "self_sym_numel": lambda n: n.plan.types[0].size},
    "ProdBackward1": {"dim": _first_axis, "keepdim": _keepdim},
    "AmaxBackward0": _REDUCTION,
    "AminBackward0": _REDUCTION,
    "ViewBackward0": {"self_sym_sizes": _sizes},
    "ExpandBackward0": {"self_sym_sizes": _sizes},
    "SqueezeBackward0": {"self_sym_sizes": _sizes},
    "PermuteBackward0": {"dims": _parameter("axes")},
    "FlipBackward0": {"dims": _parameter("axes")},
    "CatBackward0": {"dim": _parameter("axis")},
    "ConvolutionBackward0": {k: _parameter(k) for k in ("stride", "dilation", "groups")},
}


def saved_attribute(node: OperationNode, name: str) -> Any:
    """The value of `_saved_...` or `_raw_saved_...` of a node.

    Raises:
        AttributeError: the node has nothing of that name.
        GradientError: it was released, or what it kept was overwritten.
    """
    kind = type(node).__name__
    tensors = TENSORS.get(kind, {})
    if name.startswith("_raw_saved_") and name[11:] in tensors:
        return _OfOperation(node, _place(node, tensors[name[11:]]))
    if name.startswith("_saved_"):
        short = name[7:]
        others = OTHERS.get(kind, {})
        if short in others:
            return others[short](node)
        if short in tensors:
            value = _OfOperation(node, _place(node, tensors[short])).unpack()
            if value is not None and (kind, short) in _NUMBERS and value.ndim == 0:
                return value.item()
            if kind == "MmBackward0" and short == "mat2" and value is not None:
                return value.t() if node.params["contract"][1] == (1,) else value  # as of linear()
            return value
    raise AttributeError(f"{kind!r} object has no attribute {name!r}")


def saved_names(node: OperationNode) -> Iterator[str]:
    """The names that `saved_attribute` knows for a node."""
    kind = type(node).__name__
    for name in TENSORS.get(kind, {}):
        yield f"_saved_{name}"
        yield f"_raw_saved_{name}"
    for name in OTHERS.get(kind, {}):
        yield f"_saved_{name}"


def _place(node: OperationNode, position: int) -> int | None:
    """Where among `node.saved` an operand is; None where it was not kept."""
    position = len(node.plan.types) if position == RESULT else position
    kept = node.plan.kept(node.wanted)
    return kept.index(position) if position in kept else None


# ---- one saved tensor ---------------------------------------------------------------------------

_NONE = "Calling register_hooks on a saved tensor with value None is forbidden"
_FREED = (
    "Calling register_hooks on a saved tensor after it has been freed. Saved intermediate values "
    "of the graph are freed when you call .backward() or autograd.grad(). Specify "
    "retain_graph=True if you need to backward through the graph a second time or if you need to "
    "access saved variables after calling backward."
)
_TWICE = (
    "Calling register_hooks on a saved tensor whose hooks have already been set. Hint: only one "
    "pair of hooks is allowed at a time."
)


class SavedTensor:
    """One tensor that a node keeps (`_raw_saved_...`): hooks of its own can be put on it."""

    def register_hooks(self, pack_hook: Hook, unpack_hook: Hook) -> None:
        """Keep `pack_hook(tensor)` in place of the tensor; `unpack_hook` gives it back.

        Raises:
            GradientError: there are hooks on it, it was freed, or it is None; `pack_hook` wrote to
                the tensor.
            OperandError: a hook is no function.
        """
        for hook in (pack_hook, unpack_hook):
            if not callable(hook):
                raise OperandError(
                    f"register_hooks(): hooks must be functions, got {type(hook).__name__}"
                )
        if self._is_none():
            raise GradientError(_NONE)
        if self._freed():
            raise GradientError(_FREED)
        if self._packed():
            raise GradientError(_TWICE)
        tensor = self.unpack()
        assert tensor is not None, "it is there: see above"
        self._replace(pack_with(tensor.detach(), pack_hook, unpack_hook))

    def unpack(self) -> Tensor | None:
        """The tensor, with its history."""
        raise NotImplementedError

    def _is_none(self) -> bool:
        raise NotImplementedError

    def _freed(self) -> bool:
        raise NotImplementedError

    def _packed(self) -> bool:
        raise NotImplementedError

    def _replace(self, packed: Packed) -> None:
        raise NotImplementedError


class _OfOperation(SavedTensor):
    """What an operation's node keeps at one place of `saved`."""

    def __init__(self, node: OperationNode, place: int | None) -> None:
        self._node = node
        self._at = place

    def unpack(self) -> Tensor | None:
        """As a recorded backward sees it; of a leaf, the leaf."""
        from tracegrad.tracer.tape import FREED, AccumulateGrad
        from tracegrad.tracer.tensor import wrap

        node, at = self._node, self._at
        if at is None:
            return None
        if node.saved is None:
            raise GradientError(FREED)
        position = node.plan.kept(node.wanted)[at]
        edge = node.edge(position)
        saved = node.saved[at]
        if not isinstance(saved, Packed):
            leaf = edge[0].variable if isinstance(edge[0], AccumulateGrad) else None
            if leaf is not None and leaf._array is saved[0] and leaf._storage.version == saved[2]:
                return leaf  # the tensor itself, as in PyTorch
            if saved[1] is None:
                return wrap(as_array(saved[0]))
        return node._unpack(saved, edge, node.plan.all_types[position], True)

    def _is_none(self) -> bool:
        return self._at is None

    def _freed(self) -> bool:
        return self._node.saved is None

    def _packed(self) -> bool:
        assert self._node.saved is not None and self._at is not None
        return isinstance(self._node.saved[self._at], Packed)

    def _replace(self, packed: Packed) -> None:
        assert self._node.saved is not None and self._at is not None
        entries = list(self._node.saved)
        entries[self._at] = packed
        self._node.saved = tuple(entries)


class OfFunction(SavedTensor):
    """What the node of a `Function` keeps at one place of `save_for_backward`."""

    def __init__(self, node: FunctionNode, place: int) -> None:
        self._node = node
        self._at = place

    def _entry(self) -> Any:
        assert self._node._saved is not None, "not freed: see `register_hooks`"
        return self._node._saved[self._at]

    def unpack(self) -> Tensor | None:
        """As `saved_tensors` has it."""
        found: Tensor | None = self._node.saved_tensors[self._at]
        return found

    def _is_none(self) -> bool:
        return not self._freed() and self._entry() is None

    def _freed(self) -> bool:
        return self._node._saved is None

    def _packed(self) -> bool:
        return isinstance(self._entry()[0], Packed)

    def _replace(self, packed: Packed) -> None:
        from tracegrad.tracer import tape

        assert self._node._saved is not None, "not freed: see `register_hooks`"
        entry = self._entry()
        place = entry[3] if len(entry) == 4 else tape.gradient_edge(entry[0])
        self._node._saved[self._at] = (packed, place)
