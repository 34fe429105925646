"""`Tensor`: a NumPy array with a version counter and a place in the tape.

This file holds the object itself: its memory, its meta-data and its autograd surface. Operators
and methods are attached by `tracegrad.tracer.methods`; the dispatcher of operations is
`tracegrad.tracer.dispatch`. Start reading at `Tensor`, then `wrap`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.ir.location import is_internal, user_stacklevel
from tracegrad.ir.operators import Operators
from tracegrad.ir.types import TensorType
from tracegrad.tracer.device import CPU, Size, device
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import Storage

if TYPE_CHECKING:
    from tracegrad.tracer.tape import BackwardNode

_NON_LEAF_GRAD = (
    "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its .grad "
    "attribute won't be populated during autograd.backward(). If you indeed want the .grad field "
    "to be populated for a non-leaf Tensor, use .retain_grad() on the non-leaf Tensor. If you "
    "access the non-leaf Tensor by mistake, make sure you access the leaf Tensor instead. See "
    "github.com/pytorch/pytorch/pull/30531 for more informations."
)
_NON_LEAF_FLAG = (
    "you can only change requires_grad flags of leaf variables. If you want to use a computed "
    "variable in a subgraph that doesn't require differentiation use var_no_grad = var.detach()."
)


class _DTypeOf(dict[Any, DType]):
    """NumPy dtype -> DType, filled on first use: `dtype.name` is slow."""

    def __missing__(self, key: Any) -> DType:
        found = self[key] = dtypes.from_numpy(key)
        return found


dtype_of = _DTypeOf()
_bare: Any = tuple.__new__  # a Size of sizes that are ints already


class View:
    """How a view came from its base: the chain of movement operations, and when.

    `version` is the storage version for which the view's `grad_fn` holds; after a later in-place
    write through any alias it is made anew by replaying the chain on the base.
    """

    __slots__ = ("base", "chain", "version", "recorded")

    def __init__(self, base: Tensor, chain: tuple[Any, ...], version: int, recorded: bool) -> None:
        self.base = base
        self.chain = chain
        self.version = version
        self.recorded = recorded


class Tensor(Operators):
    """An n-dimensional array that remembers how it was computed.

    Make one with `tracegrad.tensor` or another factory. A *leaf* was not computed from tensors
    that require grad; `backward()` fills `.grad` of the leaves with `requires_grad=True`.
    """

    __slots__ = ("_array", "_storage", "_requires_grad", "_grad", "_grad_fn", "_output_nr",
                 "_view", "_accumulator", "_address", "__weakref__")  # fmt: skip
    __array_priority__ = 1000

    _array: np.ndarray
    _storage: Storage
    _requires_grad: bool
    _grad: Tensor | None
    _grad_fn: BackwardNode | None
    _output_nr: int
    _view: View | None
    _accumulator: Any  # weak reference to the AccumulateGrad of a leaf

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Sizes or data in the default dtype, as PyTorch's old constructor; prefer `tensor()`."""
        made = object.__new__(cls)
        if args and isinstance(args[0], Tensor):
            _fill(made, args[0]._array, args[0]._storage)
            return made
        from tracegrad.tracer.typed import legacy

        _fill(made, legacy(dtypes.get_default_dtype(), args, kwargs), Storage())
        return made

    if TYPE_CHECKING:  # what tracegrad.tracer.methods attaches

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __int__(self) -> int: ...
        def __float__(self) -> float: ...
        def __len__(self) -> int: ...

    # ---- meta-data ----

    @property
    def shape(self) -> Size:
        """Shape, a tuple."""
        return _bare(Size, self._array.shape)

    @property
    def dtype(self) -> DType:
        """Element type."""
        return dtype_of[self._array.dtype]

    @property
    def type_info(self) -> TensorType:
        """Shape, dtype and device as the IR sees them."""
        return TensorType(self._array.shape, dtype_of[self._array.dtype])

    @property
    def device(self) -> device:
        """The device of the memory."""
        return CPU

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._array.ndim

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._array.nbytes

    def _ptr(self) -> int:
        """Address of the first element; looked up once."""
        try:
            return self._address
        except AttributeError:
            self._address: int = self._array.__array_interface__["data"][0]
            return self._address

    # ---- autograd ----

    @property
    def requires_grad(self) -> bool:
        """True where gradients are computed for this tensor or flow through it."""
        if self._view is not None:
            self.grad_fn  # noqa: B018  (brings the history of a view up to date)
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        if self.grad_fn is not None and not flag:
            raise GradientError(_NON_LEAF_FLAG)
        if flag and not self.dtype.is_floating_point:
            raise GradientError("only Tensors of floating point dtype can require gradients")
        if state.recorder is not None:
            state.recorder.note("requires_grad_", self)
        self._requires_grad = bool(flag)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` and return self."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad_fn(self) -> BackwardNode | None:
        """The node that computed this tensor; None for a leaf."""
        _noted("grad_fn")
        view = self._view
        if view is not None and view.version != self._storage.version:
            from tracegrad.tracer.views import refresh

            refresh(self, view)
        return self._grad_fn

    @property
    def output_nr(self) -> int:
        """Which output of `grad_fn` this tensor is."""
        _noted("output_nr")
        return self._output_nr

    @property
    def is_leaf(self) -> bool:
        """True where no recorded operation computed this tensor."""
        _noted("is_leaf")
        return self.grad_fn is None

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient of a leaf (or after `retain_grad()`), or None."""
        if state.recorder is not None:
            state.recorder.note(".grad", self)
        if self._grad is None and self._grad_fn is not None and not self.retains_grad:
            warnings.warn(_NON_LEAF_GRAD, UserWarning, stacklevel=user_stacklevel())
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if state.recorder is not None:
            state.recorder.note(".grad", self)
        if value is not None:
            self._check_grad(value)
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self._grad = None

    def _check_grad(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise OperandError(
                "assigned grad expected to be a Tensor or None but got grad of type "
                f"{type(value).__name__}"
            )
        if value is self:
            raise GradientError("can't assign Variable as its own grad")
        if value._array.shape != self._array.shape:
            raise GradientError(
                f"assigned grad has data of a different size: got {value.shape!r}, "
                f"expected {self.shape!r}"
            )
        if value.dtype is not self.dtype:
            raise GradientError(
                f"assigned grad has data of a different type: got {value.dtype}, "
                f"expected {self.dtype}"
            )

    @property
    def retains_grad(self) -> bool:
        """True for a non-leaf on which `retain_grad()` was called."""
        _noted("retains_grad")
        node = self._grad_fn
        return bool(node is not None and node.retained and self._output_nr in node.retained)

    def retain_grad(self) -> None:
        """Have `backward()` fill `.grad` of this non-leaf too; nothing to do for a leaf.

        Raises:
            GradientError: the tensor does not require grad.
        """
        if not self.requires_grad:
            raise GradientError("can't retain_grad on Tensor that has requires_grad=False")
        if state.recorder is not None:
            state.recorder.note("retain_grad()", self)
        node = self.grad_fn
        if node is not None:
            import weakref

            node.retained = {**(node.retained or {}), self._output_nr: weakref.ref(self)}

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        """Add the gradients of this tensor to `.grad` of the leaves it depends on.

        Args:
            gradient: cotangent of this tensor, same shape; may be left out for one element.
            retain_graph: keep what the graph saved, to go through it again.
            create_graph: make the gradients themselves differentiable.
            inputs: accumulate into these tensors only.
        Raises:
            GradientError: no history, a freed graph, or an overwritten saved value.
        """
        from tracegrad.tracer.engine import backward

        backward(self, gradient, retain_graph, create_graph, inputs=inputs)

    def detach(self) -> Tensor:
        """The same memory without history; writes through either are seen by both."""
        made = wrap(self._array, self._storage)
        if state.recorder is not None:
            from tracegrad.ir.primitive import TABLE

            state.recorder.record(TABLE["detach"], (self,), {}, made)
        return made

    def detach_(self) -> Tensor:
        """Forget the history of this tensor, in place."""
        if self._view is not None:
            raise GradientError(
                "Can't detach views in-place. Use detach() instead. If you are using "
                "DistributedDataParallel (DDP) for training, and gradient_as_bucket_view is set as "
                "True, gradients are views of DDP buckets, and hence detach_() cannot be called on "
                "these gradients. To fix this error, please refer to the Optimizer.zero_grad() "
                "function in torch/optim/optimizer.py as a solution."
            )
        self._grad_fn, self._output_nr, self._requires_grad = None, 0, False
        return self

    @property
    def data(self) -> Tensor:
        """The same memory without history, and with a version counter of its own."""
        made = wrap(self._array, Storage(self._storage.memory))
        if state.recorder is not None:
            from tracegrad.ir.primitive import TABLE

            state.recorder.record(TABLE["detach"], (self,), {}, made)
        return made

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise OperandError(f"Variable data has to be a tensor, but got {type(value).__name__}")
        if state.recorder is not None:
            state.recorder.note(".data", self)
        self._array = value._array
        self._storage = Storage(value._storage.memory)
        self._view = None
        if hasattr(self, "_address"):
            del self._address

    @property
    def _version(self) -> int:
        """How often the memory was written in place."""
        _noted("_version")
        return self._storage.version

    @property
    def _base(self) -> Tensor | None:
        """The tensor that this one is a view of, or None."""
        _noted("_base")
        return None if self._view is None else self._view.base

    def _is_view(self) -> bool:
        """True for a view of another tensor."""
        _noted("_is_view()")
        return self._view is not None


def _noted(what: str) -> None:
    """Tell a recorder that the user's code reads what a replay could not know to have changed."""
    if state.recorder is not None and not is_internal(sys._getframe(2).f_code.co_filename):
        state.recorder.note(what)


def alias(x: Tensor) -> Tensor:
    """Another tensor over the memory of `x`, a leaf of the tape, with the same value.

    Unlike `detach()` it is no operation: tangents, batches and recorders take the two for one.
    """
    made = wrap(x._array, x._storage)
    if state.recorder is not None:
        state.recorder.alias(made, x)
    return made


def literal(array: np.ndarray) -> Tensor:
    """A Tensor over data that the library made itself (positions, masks), told to the recorder."""
    made = wrap(array)
    if state.recorder is not None:
        state.recorder.constant(made)
    return made


def _fill(made: Tensor, array: np.ndarray, storage: Storage) -> None:
    made._array = array
    made._storage = storage
    made._requires_grad = False
    made._grad = None
    made._grad_fn = None
    made._output_nr = 0
    made._view = None
    made._accumulator = None


_new = object.__new__


def wrap(array: np.ndarray, storage: Storage | None = None) -> Tensor:
    """A Tensor over `array` (which it shares), with no history."""
    made = _new(Tensor)
    made._array = array
    if storage is None:  # Storage(), written out
        storage = _new(Storage)
        storage.version = 0
        storage.changes = ()
        storage.of = None
    made._storage = storage
    made._requires_grad = False
    made._grad = None
    made._grad_fn = None
    made._output_nr = 0
    made._view = None
    made._accumulator = None
    return made
