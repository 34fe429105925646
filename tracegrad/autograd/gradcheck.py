"""`gradcheck` and `gradgradcheck`: gradients against central differences.

The slow mode compares whole Jacobians; the fast one compares `u^T J v` for random u and v, and
turns to the slow one to describe a failure. Start reading at `gradcheck`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.autograd.gradcheck_parts import (
    Checked,
    GradcheckError,
    analytical,
    check_batched,
    check_batched_forward,
    check_undefined,
    forward,
    numerical,
    outputs_of,
)
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer import grad_mode
from tracegrad.tracer.engine import grad
from tracegrad.tracer.tensor import Tensor, literal, wrap

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]

_PRECISION = (
    "Input #{i} requires gradient and is not a double precision floating point or complex. This "
    "check will likely fail if all the inputs are not of double precision floating point or "
    "complex. "
)
_STRIDE = (
    "The {i}th input has a dimension with stride 0. gradcheck only supports inputs that are "
    "non-overlapping to be able to compute the numerical gradients correctly. You should call "
    ".contiguous on the input before passing it to gradcheck."
)
_NO_INPUT = (
    "gradcheck expects at least one input tensor to require gradient, but none of them have "
    "requires_grad=True."
)
_REENTRANT = (
    "Backward is not reentrant, i.e., running backward with same input and grad_output multiple "
    "times gives different values, although analytical gradient matches numerical gradient."
    "The tolerance for nondeterminism was {tolerance}."
)
_FAST = (
    "\nThe above quantities relating the numerical and analytical jacobians are computed in fast "
    "mode. Below, we recompute numerical and analytical jacobians in slow mode:\n\n"
    "Numerical:\n {n}\nAnalytical:\n{a}\n\n"
    "The max per-element difference (slow mode) is: {worst}.\n"
)


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Check the gradients of `func` against central differences.

    Args:
        func: takes the inputs, returns a tensor or several; its floating-point outputs are checked.
        inputs: the arguments; tensors among them that require grad (float64) are checked.
        eps: the step of the differences.
        atol, rtol: tolerances: `|a - n| <= atol + rtol * |n|`.
        raise_exception: raise where the check fails, rather than return False.
        nondet_tol: how far two backwards may differ.
        check_undefined_grad: also run backwards where cotangents of some outputs are missing.
        check_grad_dtypes: gradients must have the dtype of their input.
        check_batched_grad: also compare with `is_grads_batched`.
        check_forward_ad: also compare the tangents of forward mode.
        check_batched_forward_grad: also compare tangents with those of a batch (`vmap`).
        check_backward_ad: compare gradients; False for forward mode alone.
        fast_mode: compare one random projection of each Jacobian.
    Raises:
        GradcheckError: the gradients are wrong.
        AssertionError: nothing is to be checked, or an option needs another one.
        ValueError: no input requires grad.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([0.5, 1.0], dtype=tg.float64, requires_grad=True)
        >>> tg.autograd.gradcheck(tg.sin, (x,))
        True
    """
    if not (check_forward_ad or check_backward_ad):
        raise AssertionError(
            "Expected at least one of check_forward_ad or check_backward_ad to be True"
        )
    for option, given, needed, there in (
        ("check_batched_grad", check_batched_grad, "check_backward_ad", check_backward_ad),
        ("check_batched_forward_grad", check_batched_forward_grad,
         "check_forward_ad", check_forward_ad),
    ):  # fmt: skip
        if given and not there:
            raise AssertionError(f"Setting {option}=True requires {needed} to be True")
    arguments = _arguments(inputs)
    try:
        _check_inputs(arguments)
        checked = Checked(func, arguments, outputs_of(func, arguments), eps)
        if not checked.outputs:
            _check_constant(checked)
            return True
        if check_backward_ad:
            (_fast if fast_mode else _slow)(checked, atol, rtol)
        if check_forward_ad:
            (_fast_forward if fast_mode else _slow_forward)(checked, atol, rtol)
        if check_batched_forward_grad:
            check_batched_forward(checked)
        if not check_backward_ad:
            return True
        _check_repeats(checked, nondet_tol, check_grad_dtypes)
        if check_batched_grad:
            check_batched(checked)
        _check_seed_used(checked)
        if check_undefined_grad:
            check_undefined(checked)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Check the gradients of the gradients of `func`, as `gradcheck` of its backward.

    Args:
        grad_outputs: cotangents of the outputs, which require grad; random where left out.
        gen_non_contig_grad_outputs: make the random ones with gaps in memory.
        check_fwd_over_rev: check forward mode of the backward.
        check_rev_over_rev: check reverse mode of the backward.
    Raises, other arguments: as for `gradcheck`.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([0.5, 1.0], dtype=tg.float64, requires_grad=True)
        >>> tg.autograd.gradgradcheck(tg.sin, (x,))
        True
    """
    if not (check_fwd_over_rev or check_rev_over_rev):
        raise AssertionError(
            "Expected at least one of check_fwd_over_rev or check_rev_over_rev to be True"
        )
    for option, given in (("undefined", check_undefined_grad), ("batched", check_batched_grad)):
        if given and not check_rev_over_rev:
            raise AssertionError(
                f"Setting check_{option}_grad=True requires check_rev_over_rev to be True"
            )
    arguments = _arguments(inputs)
    if grad_outputs is None:
        cotangents = [
            _random_like(o, gen_non_contig_grad_outputs) for o in outputs_of(func, arguments)
        ]
    else:
        cotangents = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    count = len(arguments)

    def backward_of(*everything: Any) -> Any:
        primals, given = everything[:count], everything[count:]
        wanted = [x for x in primals if isinstance(x, Tensor) and x.requires_grad]
        outputs = outputs_of(func, primals)
        with grad_mode.enable_grad():
            return grad(outputs, wanted, given, create_graph=True, allow_unused=True)

    return gradcheck(
        backward_of, (*arguments, *cotangents), eps=eps, atol=atol, rtol=rtol,
        raise_exception=raise_exception, nondet_tol=nondet_tol,
        check_undefined_grad=check_undefined_grad, check_grad_dtypes=check_grad_dtypes,
        check_batched_grad=check_batched_grad, check_forward_ad=check_fwd_over_rev,
        check_backward_ad=check_rev_over_rev, fast_mode=fast_mode,
    )  # fmt: skip


def _random_like(output: Tensor, gaps: bool) -> Tensor:
    shape = output._array.shape
    rng = np.random.default_rng(0)
    array = rng.uniform(-1, 1, (*shape, 2)) if gaps else rng.uniform(-1, 1, shape)
    array = np.asarray(array, output.dtype.numpy)
    return literal(array[..., 0] if gaps else array, output).requires_grad_()


def _check_inputs(inputs: Sequence[Any]) -> None:
    some = False
    for i, x in enumerate(inputs):
        if not (isinstance(x, Tensor) and x.requires_grad):
            continue
        some = True
        if x.dtype.numpy != np.float64:
            warnings.warn(_PRECISION.format(i=i), UserWarning, stacklevel=3)
        strides = zip(x._array.strides, x._array.shape, strict=True)
        if x._array.size and any(s == 0 and n > 1 for s, n in strides):
            raise RuntimeError(_STRIDE.format(i=i))
    if not some:
        raise ValueError(_NO_INPUT)


def _check_constant(checked: Checked) -> None:
    """No output requires grad: then none may depend on the inputs."""
    for columns in numerical(checked, everything=True):
        if any(np.any(j != 0) for j in columns):
            raise GradcheckError("Numerical gradient for function expected to be zero")


def _message(o: int, i: int, n: Any, a: Any, mode: str = "") -> str:
    return (
        f"Jacobian {mode}mismatch for output {o} with respect to input {i},\n"
        f"numerical:{n}\nanalytical:{a}\n"
    )


def _slow(checked: Checked, atol: float, rtol: float) -> None:
    by_backward = [analytical(checked, o) for o in range(len(checked.outputs))]
    for k, columns in enumerate(numerical(checked)):
        for o, n in enumerate(columns):
            a = by_backward[o][k]
            if not np.allclose(a, n, rtol=rtol, atol=atol):
                kind = checked.tensors[k].dtype.numpy
                text = _message(o, checked.wanted[k], wrap(n.astype(kind)), wrap(a.astype(kind)))
                raise GradcheckError(text)


_FORWARD = "computed with forward mode "


def _slow_forward(checked: Checked, atol: float, rtol: float) -> None:
    for k, columns in enumerate(numerical(checked)):
        for o, (n, a) in enumerate(zip(columns, forward(checked, k), strict=True)):
            if not np.allclose(a, n, rtol=rtol, atol=atol):
                raise GradcheckError(_message(o, checked.wanted[k], wrap(n), wrap(a), _FORWARD))


def _fast_forward(checked: Checked, atol: float, rtol: float) -> None:
    """Compare the derivative along one random direction per input."""
    rng = np.random.default_rng(0)
    for k, x in enumerate(checked.tensors):
        v = _unit(rng, x._array.size).reshape(x._array.shape)
        along = checked.difference(checked.wanted[k], v)
        for o, (n, a) in enumerate(zip(along, checked.pushed(k, v), strict=True)):
            if not np.allclose(a, n, rtol=rtol, atol=atol * float(np.abs(v).sum())):
                text = _message(o, checked.wanted[k], wrap(n), wrap(a), _FORWARD)
                whole = numerical(checked)[k][o], forward(checked, k)[o]
                worst = np.abs(whole[1] - whole[0]).max()
                text += _FAST.format(n=wrap(whole[0]), a=wrap(whole[1]), worst=worst)
                raise GradcheckError(text)


def _fast(checked: Checked, atol: float, rtol: float) -> None:
    """Compare one random projection per pair of output and input."""
    rng = np.random.default_rng(0)
    for k, x in enumerate(checked.tensors):
        v = _unit(rng, x._array.size).reshape(x._array.shape)
        along = checked.difference(checked.wanted[k], v)
        for o, (output, n) in enumerate(zip(checked.outputs, along, strict=True)):
            u = _unit(rng, output._array.size)
            seed = np.asarray(u.reshape(output._array.shape), output.dtype.numpy)
            g = checked.gradients([output], [literal(seed, output)])[k]
            found = 0.0 if g is None else float((host(g._array) * v).sum())
            want = float(n @ u)
            scale = float(np.abs(v).sum() * np.abs(u).sum())  # atol is meant per entry
            if not np.isclose(found, want, rtol=rtol, atol=atol * scale):
                text = _message(o, checked.wanted[k], want, found)
                raise GradcheckError(text + _in_full(checked, o, k))


def _in_full(checked: Checked, o: int, k: int) -> str:
    n, a = numerical(checked)[k][o], analytical(checked, o)[k]
    return _FAST.format(n=wrap(n), a=wrap(a), worst=np.abs(a - n).max())


def _unit(rng: np.random.Generator, size: int) -> np.ndarray:
    v = rng.uniform(0, 1, size)
    return np.asarray(v / (np.linalg.norm(v) or 1.0))


def _check_repeats(checked: Checked, tolerance: float, dtypes: bool) -> None:
    """Two backwards agree; gradients have their input's dtype and shape."""
    for o, output in enumerate(checked.outputs):
        first, second = analytical(checked, o), analytical(checked, o)
        for a, b in zip(first, second, strict=True):
            if np.abs(a - b).max(initial=0.0) > tolerance:
                raise GradcheckError(_REENTRANT.format(tolerance=tolerance))
        if dtypes:
            seed = wrap(np.ones_like(output._array))
            for g, x in zip(checked.gradients([output], [seed]), checked.tensors, strict=True):
                if g is not None and g.dtype is not x.dtype:
                    raise GradcheckError("Gradient has dtype mismatch")


def _check_seed_used(checked: Checked) -> None:
    """With zeros for all cotangents, all gradients are zero."""
    zeros = [wrap(np.zeros_like(o._array)) for o in checked.outputs]
    for g in checked.gradients(checked.outputs, zeros):
        if g is not None and np.any(host(g._array) != 0):
            raise GradcheckError("backward not multiplied by grad_output")
