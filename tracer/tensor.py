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

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.ir.location import is_internal, user_stacklevel
from tracegrad.ir.operators import Operators
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda.array import DeviceArray, DeviceDType
from tracegrad.tracer.device import CPU, Size, cuda_device, device
from tracegrad.tracer.profiling import now, profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import Storage, marking, new_storage

if TYPE_CHECKING:
    from tracegrad.tracer.tape import BackwardNode

_NON_LEAF_GRAD = (
    "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its .grad "
    "attribute won't be populated during autograd.backward(). If you indeed want the .grad field "
    "to be populated for a non-leaf Tensor, use .retain_grad() on the non-leaf Tensor. If you "
    "access the non-leaf Tensor by mistake, make sure you access the leaf Tensor instead. See "
    "github.com/pytorch/pytorch/pull/30531 for more informations."
)
_NON_LEAF_FLAG = "you can only change requires_grad flags of leaf variables."
_DETACH_INSTEAD = (
    " If you want to use a computed variable in a subgraph that doesn't require differentiation "
    "use var_no_grad = var.detach()."
)

_OTHER_DTYPE = (
    "attempting to assign a gradient with dtype '{given}' to a tensor with grad_dtype '{own}'. The "
    "gradient must match the tensor's grad_dtype (defaults to the tensor's dtype). You can set the "
    "tensor's grad_dtype attribute with a specific dtype, or None to allow any dtype. Set grad_dtype "
    "with caution. Diverging the dtypes of a tensor and its gradient may break downstream systems "
    "that assume they match. (There is no grad_dtype here: convert with gradient.to({remedy}).)"
)
_OTHER_DEVICE = (
    "attempting to assign a gradient {given} to a tensor {own}. Please ensure that the gradient and "
    "the tensor are on the same device"
)
_CPP_NAMES = {
    "float64": "double", "float32": "float", "float16": "c10::Half", "bfloat16": "c10::BFloat16",
    "int64": "long int", "int32": "int", "int16": "short int", "int8": "signed char",
    "uint8": "unsigned char", "uint32": "unsigned int",
}  # fmt: skip


def _elsewhere(given: device, own: device) -> str:
    """Why a gradient on one device is not that of a tensor on another one."""
    if given.type != own.type:
        words = [f"with device type '{where.type}'" for where in (given, own)]
    else:
        words = [f"located on device with index '{where.index}'" for where in (given, own)]
    return _OTHER_DEVICE.format(given=words[0], own=words[1])


class _DTypeOf(dict[Any, DType]):
    """dtype of an array -> DType, filled on first use: `dtype.name` is slow."""

    def __missing__(self, key: Any) -> DType:
        numpy = key.numpy if isinstance(key, DeviceDType) else key
        found = self[key] = dtypes.from_numpy(numpy)
        return found


dtype_of = _DTypeOf()
_bare: Any = tuple.__new__  # a Size of sizes that are ints already


class View:
    """How a view came from its base: the chain of movement operations, and when.

    `version` is the storage version for which the view's `grad_fn` holds; after a later in-place
    write through any alias it is made anew from the chain. `made` is "", or the reason why autograd
    cannot follow writes to the view: it was made under "no_grad" or in "inference" mode, is one of
    "several" results, or was returned by a custom "function". `borrowed` views require grad only
    because their base does, having been made while nothing was recorded: what is computed from them
    requires grad, but no gradient arrives at them.
    """

    __slots__ = ("base", "steps", "above", "version", "made", "borrowed")

    def __init__(
        self, base: Tensor, steps: tuple[Any, ...], version: int, made: str,
        above: View | None = None,
    ) -> None:  # fmt: skip
        self.base = base
        self.steps = steps
        self.above = above  # the view of which it is one, whose steps come first
        self.version = version
        self.made = made
        self.borrowed = False

    @property
    def chain(self) -> tuple[Any, ...]:
        """All movement operations from the base on."""
        if self.above is None:
            return self.steps
        parts: list[tuple[Any, ...]] = []
        view: View | None = self
        while view is not None:
            parts.append(view.steps)
            view = view.above
        return tuple(step for part in reversed(parts) for step in part)


class Tensor(Operators):
    """An n-dimensional array that remembers how it was computed.

    Make one with `tracegrad.tensor` or another factory. A *leaf* was not computed from tensors
    that require grad; `backward()` fills `.grad` of the leaves with `requires_grad=True`.
    """

    __slots__ = ("_array", "_storage", "_requires_grad", "_grad", "_grad_fn", "_output_nr",
                 "_view", "_accumulator", "_address", "_moves", "__weakref__")  # fmt: skip
    __array_priority__ = 1000

    _array: Any  # np.ndarray, or DeviceArray on a CUDA device
    _storage: Storage
    _requires_grad: bool
    _grad: Tensor | None
    _grad_fn: BackwardNode | None
    _output_nr: int
    _view: View | None
    _accumulator: Any  # weak reference to the AccumulateGrad of a leaf
    _moves: tuple[Any, ...]  # unset, or the steps that undo `t_` and the like, newest first

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Sizes or data in the default dtype, as PyTorch's old constructor; prefer `tensor()`."""
        made = object.__new__(cls)
        if args and isinstance(args[0], Tensor):
            _fill(made, args[0]._array, args[0]._storage)
            return made
        from tracegrad.tracer import typed

        since = now()
        array = typed.legacy(dtypes.get_default_dtype(), args, kwargs)
        _fill(made, array, new_storage())
        if profilers:
            typed.note_legacy(made, args, kwargs, since)
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
        return type_of_array(self._array)

    @property
    def device(self) -> device:
        """The device of the memory."""
        array: Any = self._array
        return cuda_device(array.index) if array.__class__ is DeviceArray else CPU

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
            self._address: int = address_of(self._array)
            return self._address

    # ---- autograd ----

    @property
    def requires_grad(self) -> bool:
        """True where gradients are computed for this tensor or flow through it."""
        view = self._view
        if view is not None:
            if not view.made:
                self.grad_fn  # noqa: B018  (brings the history of a view up to date)
            return self._requires_grad or view.base.requires_grad
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        if type(flag) is not bool:
            raise GradientError("requires_grad must be a bool")
        if self.grad_fn is not None:
            raise GradientError(_NON_LEAF_FLAG + ("" if flag else _DETACH_INSTEAD))
        self._flag(flag)

    def _flag(self, flag: bool) -> None:
        """Set `requires_grad` of a leaf, or keep that of a result, where True is allowed."""
        if flag and self._storage.inference and not state.inference:
            raise GradientError(
                "Setting requires_grad=True on inference tensor outside InferenceMode is not "
                "allowed."
            )
        if flag and not self.dtype.is_floating_point:
            raise GradientError("only Tensors of floating point dtype can require gradients")
        view = self._view
        own = self._requires_grad and (view is None or not view.borrowed)
        if state.recorder is not None and flag != own:
            state.recorder.requires_grad(self, flag)
        if view is not None and self._grad_fn is None:
            view.borrowed = not flag
            flag = flag or view.base.requires_grad
        self._requires_grad = flag

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` and return self; True is allowed, and idle, where `grad_fn` is set."""
        if type(requires_grad) is not bool:
            raise OperandError(
                "requires_grad_(): argument 'requires_grad' (position 1) must be bool, not "
                f"{type(requires_grad).__name__}"
            )
        if self.grad_fn is not None and not requires_grad:
            raise GradientError(_NON_LEAF_FLAG + _DETACH_INSTEAD)
        self._flag(requires_grad)
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
            state.recorder.grad_read(self)
        if self._grad is None and self._grad_fn is not None and not self.retains_grad:
            warnings.warn(_NON_LEAF_GRAD, UserWarning, stacklevel=user_stacklevel())
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            self._check_grad(value)
        if state.recorder is not None:
            state.recorder.grad_set(self, value)
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    def _check_grad(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise OperandError(
                "assigned grad expected to be a Tensor or None but got grad of type "
                f"{type(value).__name__}"
            )
        if value is self:
            raise GradientError("can't assign Variable as its own grad")
        if value.dtype is not self.dtype:
            from tracegrad.tracer.tape import scalar_type_name

            given, own = _CPP_NAMES.get(value.dtype.name, value.dtype.name), self.dtype
            raise GradientError(
                _OTHER_DTYPE.format(given=given, own=scalar_type_name(own), remedy=repr(own))
            )
        if value.device != self.device:
            raise GradientError(_elsewhere(value.device, self.device))
        if value._array.shape != self._array.shape:
            raise GradientError(
                f"attempting to assign a gradient of size '{list(value._array.shape)}' to a tensor "
                f"of size '{list(self._array.shape)}'. Please ensure that the gradient and the "
                "tensor are the same size"
            )

    @property
    def retains_grad(self) -> bool:
        """True for a non-leaf on which `retain_grad()` was called."""
        _noted("retains_grad")
        node = self._grad_fn
        return bool(node is not None and node.retained and self._output_nr in node.retained)

    @property
    def _backward_hooks(self) -> Any:
        """The hooks on its gradient by the number of their handle, in order; None before the first."""
        from tracegrad.tracer.hooks import hooks_on

        _noted("_backward_hooks")
        return hooks_on(self)

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
        node = self._grad_fn
        if (
            node is not None and gradient is None and inputs is None and not create_graph
            and node.gradients is not None and node.hand_over(self, bool(retain_graph))
        ):  # fmt: skip
            return
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
                "function in torch/optim/optimizer.py as the solution."
            )
        self._grad_fn, self._output_nr, self._requires_grad = None, 0, False
        return self

    @property
    def data(self) -> Tensor:
        """The same memory without history, and with a version counter of its own."""
        made = wrap(self._array, type(self._storage)(self._storage.memory))
        if state.recorder is not None:
            from tracegrad.ir.primitive import TABLE

            state.recorder.record(TABLE["detach"], (self,), {}, made)
        return made

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise OperandError(f"Variable data has to be a tensor, but got {type(value).__name__}")
        if self.requires_grad and not value.dtype.is_floating_point:
            raise GradientError(
                "data set to a tensor that requires gradients must be floating point or complex "
                "dtype"
            )
        if state.transform is not None:
            from tracegrad.tracer.inplace import check_mode

            check_mode(self, "set_data")
        if state.recorder is not None:
            state.recorder.note(".data", self)
            state.recorder.check_write("set_data", self, value)
        self._array = value._array
        version = 0 if self._storage.inference else self._storage.version
        self._storage = Storage(value._storage.memory)
        self._storage.version = version
        self._view = None
        self._moves = ()
        if hasattr(self, "_address"):
            del self._address

    @property
    def _version(self) -> int:
        """How often the memory was written in place."""
        _noted("_version")
        if self._storage.inference:
            raise GradientError("Inference tensors do not track version counter.")
        return self._storage.version

    @property
    def _base(self) -> Tensor | None:
        """The tensor that this one is a view of, or None."""
        _noted("_base")
        return None if self._view is None else self._view.base

    def is_inference(self) -> bool:
        """True for a tensor made in inference mode, or a view of one: it is never saved."""
        return self._storage.inference

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
    storage = x._storage
    if storage.inference and not state.inference:
        storage = Storage(storage.memory)
    made = wrap(x._array, storage)
    if state.recorder is not None:
        state.recorder.alias(made, x)
    return made


def type_of_array(array: Any) -> TensorType:
    """Shape, dtype and device of an array, or of a NumPy scalar."""
    dtype = array.dtype
    where = f"cuda:{dtype.index}" if dtype.__class__ is DeviceDType else "cpu"
    return TensorType(array.shape, dtype_of[dtype], where)


def address_of(array: Any) -> int:
    """The address of the first element, on its device."""
    if array.__class__ is DeviceArray:
        return array.address
    return array.__array_interface__["data"][0]


def literal(array: Any, like: Any = None) -> Tensor:
    """A Tensor over data that the library made itself (positions, masks), told to the recorder.

    Args:
        like: a tensor on whose device the data belong; by default they stay in host memory.
    """
    near: Any = getattr(like, "_array", None)
    if near.__class__ is DeviceArray:
        array = DeviceArray.from_host(array, near.index)
    made = wrap(array)
    if state.recorder is not None:
        state.recorder.constant(made)
    return made


def _fill(made: Tensor, array: Any, storage: Storage) -> None:
    made._array = array
    made._storage = storage
    made._requires_grad = False
    made._grad = None
    made._grad_fn = None
    made._output_nr = 0
    made._view = None
    made._accumulator = None


_new = object.__new__


def wrap(array: Any, storage: Storage | None = None) -> Tensor:
    """A Tensor over `array` (which it shares), with no history."""
    made = _new(Tensor)
    made._array = array
    if storage is None and marking:
        storage = new_storage()
    elif storage is None:  # Storage(), written out
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
