"""The in-place methods, `INPLACE_FUNCTIONS`: those made from the functions of the same name, and
those that fill a tensor with a value, another tensor or random numbers.

Every method checks all its arguments before it writes, so a refused call changes nothing. Start
reading at `_in_place`, then `copy_`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import DTypeError, OperandError, ShapeError, UnsupportedError
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer import (  # noqa: F401  (they add to the tables of others)
    expanding,
    extremes,
    gathering,
    indexing,
    inplace,
    inplace_moves,
    linalg,
    picking,
    pointwise,
    pointwise_composed,
    pointwise_odd,
    pointwise_special,
    products,
    running,
    scatter_reduce,
    stacking,
    statistics,
    updates,
)
from tracegrad.tracer.arguments import bool_argument
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.pointwise import apply1, apply2, need_tensor
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.random_factories import rand, randint, randn
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor


def _in_place(name: str, compute: Callable[..., Any]) -> Callable[..., Tensor]:
    def method(self: Tensor, *operands: Any, **params: Any) -> Tensor:
        need_tensor(name, "input", 1, self)
        return inplace.apply(name, self, compute, *operands, **params)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"`{name[:-1]}`, written into the tensor's own memory. Returns the tensor."
    return method


def _cast(x: Tensor, dtype: Any) -> Tensor:
    return x if x.dtype is dtype else dispatch(ops.cast, (x,), {"dtype": dtype})


def _no_combination(name: str, expected: str, *given: Any) -> OperandError:
    kinds = ", ".join(type(x).__name__ for x in given)
    return OperandError(
        f"{name}() received an invalid combination of arguments - got ({kinds}), but expected one "
        f"of:\n{expected}"
    )


# ---- values -------------------------------------------------------------------------------------


def zero_(self: Tensor) -> Tensor:
    """Set all elements to 0."""
    need_tensor("zero_", "input", 1, self)
    return _filled("zero_", self, indexing._as_value(self, 0), "ZeroBackward0")


def fill_(self: Tensor, value: Any) -> Tensor:
    """Set all elements to `value`.

    Args:
        value: a number, or a 0-d tensor, which is cast.
    Raises:
        ShapeError: `value` has dimensions.
        OperandError: `value` is neither.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2).fill_(3)
        tensor([3., 3.])
    """
    need_tensor("fill_", "input", 1, self)
    if isinstance(value, complex):
        raise dtypes.complex_refused("fill_(): argument 'value'")
    if not isinstance(value, Tensor) and not is_scalar(value):
        raise _no_combination("fill_", " * (Tensor value)\n * (Number value)", value)
    source = indexing._as_value(self, value)
    if source.ndim:
        raise ShapeError(
            "fill_ only supports 0-dimension value tensor but got tensor with "
            f"{source.ndim} dimensions."
        )
    return _filled("fill_", self, source, "" if isinstance(value, Tensor) else "FillBackward2")


def _filled(name: str, self: Tensor, source: Tensor, label: str) -> Tensor:
    if profilers and state.profiler is not None:
        return inplace.listed(name, self, source, lambda: _filled(name, self, source, label))
    inplace.check_history(self, source)
    inplace.check_mode(self, name)
    if inplace.tracked(source):  # elements at one place would count several times
        inplace.check_layout(self, name)
    elif not self._array.flags.writeable:
        inplace.make_writeable(self._array)
    return inplace.write(name, self, _cast(source, self.dtype), label)


def copy_(self: Tensor, other: Any, non_blocking: bool = False) -> Tensor:
    """Set the elements to those of `other`, a tensor that is broadcast and cast.

    Raises:
        ShapeError: the shape of `other` does not broadcast to that of the tensor.
        OperandError: `other` is neither a tensor nor a number.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2, 2).copy_(tg.tensor([1, 2]))
        tensor([[1., 2.],
                [1., 2.]])
    """
    need_tensor("copy_", "input", 1, self)
    bool_argument("copy_", "non_blocking", non_blocking)
    if not isinstance(other, Tensor | np.ndarray) and not is_scalar(other):
        kind = type(other).__name__
        raise OperandError(f"copy_(): argument 'other' (position 1) must be Tensor, not {kind}")
    return inplace.copy(self, indexing._as_value(self, other))


def _float_power_(self: Tensor, exponent: Any) -> Tensor:
    """`float_power`, written into the tensor's own memory, which must be float64."""
    need_tensor("float_power_", "input", 1, self)
    if self.dtype is not dtypes.float64:
        raise DTypeError(
            f"the base given to float_power_ has dtype {scalar_type_name(self.dtype)} but the "
            "operation's result requires dtype Double"
        )
    return inplace.apply("float_power_", self, pointwise.FUNCTIONS["float_power"], exponent)


def _conj_physical_(self: Tensor) -> Tensor:
    """The tensor itself: no number here is complex."""
    need_tensor("conj_physical_", "input", 1, self)
    return self


# ---- at indices and masks -----------------------------------------------------------------------


def index_put_(
    self: Tensor, indices: Sequence[Tensor], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Put (or add) `values` at `indices`; the in-place form of `index_put`."""
    need_tensor("index_put_", "input", 1, self)
    gathering.check_put(self, indices, values)
    return inplace.apply("index_put_", self, _put, values, indices=tuple(indices),
                         accumulate=accumulate)  # fmt: skip


def _put(x: Tensor, values: Tensor, indices: tuple[Tensor, ...], accumulate: bool) -> Tensor:
    return gathering.index_put(x, indices, values, accumulate)


def masked_fill_(self: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Set the elements where `mask` (bool, broadcast to the tensor) holds to `value`.

    Args:
        value: a number or a 0-d tensor, which is cast.
    Raises:
        DTypeError: `mask` is not bool.
        ShapeError: `value` has dimensions, or the mask does not broadcast to the tensor.
        OperandError: other arguments.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([-1., 2.])
        >>> x.masked_fill_(x < 0, 0)
        tensor([0., 2.])
    """
    need_tensor("masked_fill_", "input", 1, self)
    if not isinstance(mask, Tensor) or not (isinstance(value, Tensor) or is_scalar(value)):
        expected = " * (Tensor mask, Tensor value)\n * (Tensor mask, Number value)"
        raise _no_combination("masked_fill_", expected, mask, value)
    return inplace.apply("masked_fill_", self, gathering.masked_fill, mask, value)


# ---- random numbers -----------------------------------------------------------------------------


_KERNELS = {
    "uniform_": "check_uniform_bounds", "normal_": "normal_kernel_cpu",
    "log_normal_": "log_normal_cpu",
}  # fmt: skip


def _check_floating(name: str, x: Tensor) -> None:
    if x.dtype.is_floating_point:
        return
    kind = scalar_type_name(x.dtype)
    if name in _KERNELS:
        raise UnsupportedError(f"\"{_KERNELS[name]}\" not implemented for '{kind}'")
    raise DTypeError(
        f"{name[:-1].title()} distribution is a continuous probability distribution. dtype must be "
        f"a floating point but you specified {kind}"
    )


def _random(name: str, compute: Callable[..., Any], floats: bool) -> Callable[..., Tensor]:
    def method(self: Tensor, *args: Any, **options: Any) -> Tensor:
        need_tensor(name, "input", 1, self)
        if floats:
            _check_floating(name, self)
        inplace.check_writable(self, name=name)
        return inplace.write(name, self, _cast(compute(self, *args, **options), self.dtype))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = compute.__doc__
    return method


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with numbers uniform in [low, high)."""
    if low > high:
        raise ShapeError(
            f"uniform_ expects to return a [from, to) range, but found from={low} > to={high}"
        )
    return rand(tuple(x.shape), dtype=x.dtype, generator=generator) * (high - low) + low


def _normal(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with normal numbers of the given mean and standard deviation."""
    if std < 0:
        raise ShapeError(f"normal expects std >= 0.0, but found std {std:g}")
    return randn(tuple(x.shape), dtype=x.dtype, generator=generator) * std + mean


def _bernoulli(x: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Fill with 1 with probability `p` (a number, or a tensor that broadcasts), else 0."""
    if not isinstance(p, Tensor) and not 0 <= p <= 1:
        raise ShapeError(f"bernoulli_ expects p to be in [0, 1], but got p={p:g}")
    limit = p.detach().expand(x.shape) if isinstance(p, Tensor) else p
    return rand(tuple(x.shape), dtype=dtypes.float64, generator=generator) < limit


def _integers(x: Tensor, low: Any = None, high: Any = None, *, generator: Any = None) -> Tensor:
    """Fill with integers uniform in [low, high); `random_(high)` starts at 0.

    Without bounds, up to the largest integer that the dtype holds exactly.
    """
    if high is None:
        low, high = 0, _all_integers(x.dtype) if low is None else low
    if low >= high:
        raise ShapeError(
            f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    return randint(int(low), int(high), tuple(x.shape), generator=generator)


def _all_integers(dtype: dtypes.DType) -> int:
    """One more than the largest integer that `random_` draws for a dtype."""
    if dtype.is_floating_point:
        digits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype.name]
        return 2**digits + 1
    return 2 if dtype is dtypes.bool_ else min(int(np.iinfo(dtype.numpy).max) + 1, 2**63 - 1)


def _positive(x: Tensor, generator: Any) -> Tensor:
    """Uniform in (0, 1], float64."""
    return 1 - rand(tuple(x.shape), dtype=dtypes.float64, generator=generator)


def _exponential(x: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with exponentially distributed numbers of rate `lambd`."""
    if lambd <= 0:
        raise ShapeError(f"exponential_ expects lambda > 0.0, but found lambda={lambd:g}")
    return apply1("log", _positive(x, generator)) * (-1.0 / lambd)


def _geometric(x: Tensor, p: float, *, generator: Any = None) -> Tensor:
    """Fill with the number of trials, each of success probability `p`, until the first success."""
    if not 0 < p < 1:
        raise ShapeError(f"geometric_ expects p to be in (0, 1), but got p={p:g}")
    trials = apply1("ceil", apply1("log", _positive(x, generator)) / math.log1p(-p))
    return apply2("maximum", trials, 1.0)


def _cauchy(x: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with Cauchy numbers around `median`, of scale `sigma`."""
    if sigma <= 0:
        raise ShapeError(f"cauchy_ expects sigma > 0.0, but found sigma={sigma:g}")
    turn = (_positive(x, generator) - 0.5) * math.pi
    return apply1("tan", turn) * sigma + median


def _log_normal(x: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Any = None) -> Tensor:
    """Fill with numbers whose logarithms are normal, of the given mean and standard deviation."""
    if std <= 0:
        raise ShapeError(f"log_normal_ expects std > 0.0, but found std={std:g}")
    return apply1(
        "exp", randn(tuple(x.shape), dtype=dtypes.float64, generator=generator) * std + mean
    )


# ---- the table ----------------------------------------------------------------------------------

INPLACE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{name}_": _in_place(f"{name}_", pointwise.FUNCTIONS[name]) for name in pointwise.INPLACE
}
_tables = {**pointwise.FUNCTIONS, **updates.FUNCTIONS}
for _name in "tril triu cumsum cumprod index_add index_copy index_fill masked_scatter addmv addr \
addbmm deg2rad rad2deg xlogy logit ldexp sinc mvlgamma heaviside gcd lcm nextafter".split():
    INPLACE_FUNCTIONS[f"{_name}_"] = _in_place(f"{_name}_", _tables[_name])
INPLACE_FUNCTIONS.update(
    zero_=zero_, fill_=fill_, copy_=copy_, index_put_=index_put_, masked_fill_=masked_fill_,
    fill_diagonal_=_in_place("fill_diagonal_", updates.fill_diagonal),
    float_power_=_float_power_,
    put_=_in_place("put_", gathering.FUNCTIONS["put"]),
    renorm_=_in_place("renorm_", gathering.FUNCTIONS["renorm"]),
    polygamma_=_in_place("polygamma_", lambda x, n: pointwise.FUNCTIONS["polygamma"](n, x)),
    scatter_reduce_=_in_place("scatter_reduce_", gathering.FUNCTIONS["scatter_reduce"]),
    index_reduce_=_in_place("index_reduce_", gathering.FUNCTIONS["index_reduce"]),
    conj_physical_=_conj_physical_,
    scatter_=_in_place("scatter_", gathering.scatter),
    scatter_add_=_in_place("scatter_add_", gathering.scatter_add),
    addmm_=_in_place("addmm_", linalg.addmm), baddbmm_=_in_place("baddbmm_", linalg.baddbmm),
    uniform_=_random("uniform_", _uniform, True), normal_=_random("normal_", _normal, True),
    bernoulli_=_random("bernoulli_", _bernoulli, False),
    random_=_random("random_", _integers, False),
    exponential_=_random("exponential_", _exponential, True),
    geometric_=_random("geometric_", _geometric, False),
    cauchy_=_random("cauchy_", _cauchy, True),
    log_normal_=_random("log_normal_", _log_normal, True),
    **inplace_moves.METHODS,
)  # fmt: skip
