"""`out=`: the functions of the namespace that can write their result into a tensor of the caller.

PyTorch's rules: no gradients flow, the result is cast where that loses nothing of its category,
and `out` takes the shape of the result, with a warning where it had elements. Methods take no
`out`. Everything is checked before anything is written. Start reading at `with_out`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import DType, as_dtype
from tracegrad.ir.errors import DTypeError, GradientError, OperandError, ShapeError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer import inplace
from tracegrad.tracer.indexing import C_NAMES
from tracegrad.tracer.pytree import flatten
from tracegrad.tracer.signatures import reconsidered
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

_POINTWISE = (
    "abs absolute acos acosh add addcdiv addcmul arccos arccosh arcsin arcsinh arctan arctan2 "
    "arctanh asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or "
    "bitwise_right_shift bitwise_xor ceil clamp clamp_max clamp_min clip copysign cos cosh deg2rad "
    "digamma div divide eq erf erfc erfinv exp exp2 expm1 fix floor floor_divide fmod frac ge "
    "greater greater_equal gt hypot le lerp less less_equal lgamma log log10 log1p log2 "
    "logical_and logical_not logical_or logical_xor logit lt maximum minimum mul multiply "
    "nan_to_num ne neg negative not_equal pow rad2deg reciprocal remainder round rsqrt sgn sigmoid "
    "sign sin sinh sqrt square sub subtract tan tanh true_divide trunc where xlogy "
    "float_power fmax fmin gcd heaviside i0 isneginf isposinf lcm ldexp logaddexp logaddexp2 mvlgamma "
    "nextafter polygamma signbit sinc"
).split()
_WHOLE = (
    "addbmm addmm addmv addr all amax amin any argmax argmin baddbmm bernoulli bmm cat concat "
    "concatenate cumprod cumsum dot gather index_add index_copy index_select log_softmax logsumexp "
    "masked_select matmul max mean min mm mv nonzero norm outer prod scatter scatter_add softmax "
    "stack std sum tensordot tril triu var chain_matmul column_stack cross diag dstack ger hstack inner "
    "kron matrix_power nanmean nansum narrow_copy renorm row_stack "
    "scatter_reduce index_reduce take take_along_dim vdot vstack"
).split()
NAMES = frozenset((*_POINTWISE, *_WHOLE))
"""The functions that take `out`, as in PyTorch; factories read theirs themselves."""

_OVERLAP_ALLOWED = frozenset(_WHOLE) - {"cat", "concat", "concatenate", "stack", "cumsum",
                                        "cumprod", "gather", "scatter", "scatter_add"}  # fmt: skip
_COMPUTED_IN = ("sum", "prod", "cumsum", "cumprod")  # in the dtype of `out`

_INEXACT = frozenset(
    "addbmm addmm addmv addr argmax argmin baddbmm bmm gather log_softmax matmul max min mm mv norm "
    "scatter scatter_add softmax tril triu".split()
)
_NEEDS = {
    "where": "Expected out type to be {want} but got {have}",
    "clamp": "Found dtype {have} but expected {want}",
    "index_select": "index_select(): self and result must have the same scalar type",
    "masked_select": "masked_select(): self and result must have the same scalar type",
    "dot": "result dtype {have} does not match input dtype {want}",
    "amax": "Expected the dtype for input and out to match, but got {want} for input's dtype and "
    "{have} for out's dtype.",
    "amin": "Expected the dtype for input and out to match, but got {want} for input's dtype and "
    "{have} for out's dtype.",
    "all": "all only supports bool tensor for result, got: {have}",
    "any": "any only supports bool tensor for result, got: {have}",
    "nonzero": "nonzero: Expected out tensor to have scalar type {want} but got scalar type{have}",
    "tensordot": "tensordot: Expected the output tensor to have dtype {want}, but got an output "
    "tensor with dtype {have}",
    **dict.fromkeys(_INEXACT, "Expected out tensor to have dtype {c_want}, but got {c_have} "
                              "instead"),
}  # fmt: skip


def with_out(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a keyword `out`: a tensor for its result, or a tuple for several.

    Raises (when called with `out`):
        OperandError: `out` is no tensor (or not as many as there are results).
        GradientError: an argument or `out` requires grad, under grad mode.
        DTypeError: the result cannot be cast to the dtype of `out`.
        ShapeError: `out` overlaps itself or an argument, or is a view of another shape.
    """

    @functools.wraps(function)
    def call(*args: Any, out: Any = None, **options: Any) -> Any:
        try:
            if out is None:
                return function(*args, **options)
            return _into(name, function, out, args, options)
        except Exception:
            given = options if out is None else {**options, "out": out}
            again = reconsidered(name, False, args, given)
            if again is None:
                raise
        return call(*args, **again)

    return call


_NO_GRADIENT = (
    "{name}(): functions with out=... arguments don't support automatic differentiation, but one of "
    "the arguments requires grad."
)


def _into(
    name: str, function: Callable[..., Any], out: Any, args: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:  # fmt: skip
    several = isinstance(out, tuple | list)
    outs = tuple(out) if several else (out,)
    pairs = name in ("max", "min") and several
    for x in outs:
        if not isinstance(x, Tensor) or several is not pairs:
            kind = type(x if pairs else out).__name__
            raise OperandError(f"{name}(): argument 'out' must be Tensor, not {kind}")
    leaves: list[Any] = []
    flatten((args, options), leaves)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    if inplace.tracked(*outs):
        raise GradientError(_NO_GRADIENT.format(name=name))
    given = dict(options)
    if name in _COMPUTED_IN:
        _choose_dtype(given, outs[0])
    result = function(*args, **given)
    values = tuple(result) if isinstance(result, tuple) else (result,)
    if inplace.tracked(*tensors) and values[0].dtype.is_floating_point:
        raise GradientError(_NO_GRADIENT.format(name=name))
    if len(values) != len(outs):
        if pairs:
            raise OperandError(f"expected tuple of {len(values)} elements but got {len(outs)}")
        raise OperandError(f"{name}() takes a tuple of {len(values)} tensors as 'out'")
    for x, value in zip(outs, values, strict=True):
        _check(name, x, value, tensors)
    for x, value in zip(outs, values, strict=True):
        _resize(x, value._array.shape)
        inplace.write(f"{name}(out=)", x, value)
    return type(result)(*outs) if pairs else out


def _choose_dtype(options: dict[str, Any], out: Tensor) -> None:
    """Compute in the dtype of `out`.

    Raises:
        DTypeError: another one is asked for.
    """
    asked = options.get("dtype")
    if asked is not None and as_dtype(asked) is not out.dtype:
        raise DTypeError(
            f"dtype {scalar_type_name(as_dtype(asked))} does not match dtype of out parameter "
            f"({scalar_type_name(out.dtype)})"
        )
    options["dtype"] = out.dtype


def _check(name: str, out: Tensor, value: Tensor, operands: Sequence[Tensor]) -> None:
    _check_dtype(name, out.dtype, value.dtype)
    inplace.check_device(out, value)
    if operands and value.device != out.device:
        inplace.check_device(value, out)
    inplace.check_layout(out)
    if out._array.shape == value._array.shape:
        if name not in _OVERLAP_ALLOWED:
            inplace.check_apart(out, operands)
    elif out._view is not None:
        raise ShapeError(
            f"{name}(): out is a view of shape {list(out.shape)}, and cannot take the shape "
            f"{list(value.shape)} of the result; pass a tensor with memory of its own"
        )


def _check_dtype(name: str, have: DType, want: DType) -> None:
    text = _NEEDS.get(name)
    if text is not None and have is not want:
        raise DTypeError(
            text.format(
                have=scalar_type_name(have), want=scalar_type_name(want),
                c_have=C_NAMES.get(have.name, have.name), c_want=C_NAMES.get(want.name, want.name),
            )
        )  # fmt: skip
    if name in ("cat", "concat", "concatenate", "stack") and want.category > have.category:
        raise OperandError(
            "torch.cat(): input types can't be cast to the desired output type "
            f"{scalar_type_name(have)}"
        )
    inplace.check_cast(want, have)


def _resize(out: Tensor, shape: tuple[int, ...]) -> None:
    """Give `out` another shape: in its memory where it has room, else in new memory."""
    array = out._array
    if array.shape == shape:
        return
    if array.size:
        warnings.warn(
            "An output with one or more elements was resized since it had shape "
            f"{list(array.shape)}, which does not match the required output shape {list(shape)}. "
            "This behavior is deprecated, and in a future PyTorch release outputs will not be "
            "resized unless they have zero elements. You can explicitly reuse an out tensor t by "
            "resizing it, inplace, to zero elements with t.resize_(0).",
            UserWarning,
            stacklevel=user_stacklevel(),
        )
    if state.recorder is not None:
        state.recorder.note("resizing of an out= tensor")
    size = prod(shape)
    fits = array.flags.c_contiguous and array.size >= size
    out._array = (
        array.reshape(-1)[:size].reshape(shape) if fits
        else np.empty_like(array, order="C", shape=shape)
    )  # fmt: skip
    if hasattr(out, "_address"):
        del out._address
