"""Jacobians and Hessians as tensors: rows in reverse mode, or columns in forward mode.

A row is one backward pass, seeded with a unit vector; rows come one after the other, or all at once
as a batch of seeds. A column is the derivative along a unit vector. Start reading at `jacobian`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.autograd import functional_checks as checks
from tracegrad.autograd.functional_checks import Tensors
from tracegrad.ir.errors import GradientError
from tracegrad.tracer.factories import zeros, zeros_like
from tracegrad.tracer.grad_mode import enable_grad
from tracegrad.tracer.joining import stack
from tracegrad.tracer.tensor import Tensor, alias, literal

MODES = ("forward-mode", "reverse-mode")
_STRATEGY = 'Expected strategy to be either "forward-mode" or "reverse-mode".'
_STRATEGY_HINT = (
    ' Hint: If your function has more outputs than inputs, "forward-mode" tends to be more '
    'performant. Otherwise, prefer to use "reverse-mode".'
)
_HERE = "torch.autograd.functional.jacobian: "
_NOT_TOGETHER = (
    ' and `strategy="forward-mode"` are not supported together (yet). Please either set '
)
_ONLY_VECTORIZED = (
    "Computing Jacobian using forward-AD or forward-over-reverse Hessian isonly implemented for "
    "`vectorize=True`."
)


def jacobian(
    func: Callable[..., Any], inputs: Any, create_graph: bool = False, strict: bool = False,
    vectorize: bool = False, strategy: str = "reverse-mode",
) -> Any:  # fmt: skip
    """All partial derivatives of `func` at `inputs`.

    Args:
        func: takes the inputs, returns a tensor or a tuple of tensors.
        inputs: a tensor, or a tuple of tensors, of floating dtype.
        create_graph: make the Jacobian differentiable; reverse mode only.
        strict: refuse an output that does not depend on an input, instead of giving zeros.
        vectorize: compute all rows (or columns) at once, as a batch.
        strategy: "reverse-mode", or "forward-mode" (with `vectorize=True` only, as in PyTorch),
            which is cheaper for more outputs than inputs.
    Returns:
        `J[i][j]` of the shape of output i followed by that of input j, and of input j's dtype
        (output i's in forward mode). A level is left out where output or inputs are no tuple.
    Raises:
        AssertionError: an unknown strategy.
        NotImplementedError, GradientError: arguments that exclude each other; strict mode found
            an independence.
        OperandError: inputs or outputs are not tensors.
    Source: torch.autograd.functional.jacobian.
    Example:
        >>> import tracegrad as tg
        >>> jacobian(lambda x: x * x, tg.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    if strategy not in MODES:
        raise AssertionError(_STRATEGY + _STRATEGY_HINT)
    if strategy == "forward-mode":
        _check_options(create_graph, strict)
        return _in_forward_mode(func, inputs, vectorize)
    with enable_grad():
        in_tuple, given = checks.as_tensors(inputs, "inputs", "jacobian")
        at = checks.fresh(given, create_graph)
        out_tuple, outputs = checks.as_tensors(func(*at), checks.OUTPUTS, "jacobian")
        if strict:
            checks.require_history(outputs, checks.NO_HISTORY)
        if vectorize and strict:
            raise GradientError(
                f"{_HERE}`strict=True` and `vectorized=True` are not supported together. Please "
                "either set `strict=False` or `vectorize=False`."
            )
        if vectorize:
            blocks = [rows_at_once(x, at, create_graph) for x in outputs]
        else:
            blocks = [rows(i, x, at, create_graph, strict) for i, x in enumerate(outputs)]
        result = tuple(checks.finished(row, in_tuple, create_graph) for row in blocks)
    return result if out_tuple else result[0]


def _in_forward_mode(func: Callable[..., Any], inputs: Any, vectorize: bool) -> Any:
    """The Jacobian from one run of `func` with a batch of tangents."""
    from tracegrad.func.matrices import columns_at_once

    in_tuple, given = checks.as_tensors(inputs, "inputs", "jacobian")
    if not vectorize:
        raise NotImplementedError(_ONLY_VECTORIZED)
    tuples: list[bool] = []

    def checked(*x: Tensor) -> Tensors:
        is_tuple, outputs = checks.as_tensors(func(*x), checks.OUTPUTS, "jacobian")
        tuples.append(is_tuple)
        return outputs

    at = tuple(alias(x) for x in given)
    with enable_grad():
        blocks, _, _ = columns_at_once(checked, at, False, "error")
    result = tuple(checks.finished(row, in_tuple, False) for row in blocks)
    return result if tuples[0] else result[0]


def _check_options(create_graph: bool, strict: bool) -> None:
    """Refuse what PyTorch does not offer in forward mode."""
    if create_graph:
        raise NotImplementedError(
            f"{_HERE}`create_graph=True`{_NOT_TOGETHER}`create_graph=False` or "
            '`strategy="reverse-mode"`.'
        )
    if strict:
        raise GradientError(
            f"{_HERE}`strict=True`{_NOT_TOGETHER}`strict=False` or "
            '`strategy="reverse-mode"`.'
        )  # fmt: skip


def _unit(like: Tensor, k: int) -> Tensor:
    """Zeros of the shape and dtype of `like`, but for a one as element k in row-major order."""
    array = np.zeros(like._array.size, like.dtype.numpy)
    array[k] = 1
    return literal(array.reshape(like._array.shape), like)


def _stacked(parts: list[Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`parts` one after the other, in the given shape; `like` tells the dtype of none at all."""
    if not parts:
        return zeros(*shape, dtype=like.dtype)
    return stack(parts).reshape(shape)


def rows(
    number: int, output: Tensor, at: Tensors, create_graph: bool, strict: bool = False
) -> Tensors:
    """The Jacobian of one output with respect to every input."""
    found_rows: list[list[Tensor]] = [[] for _ in at]
    for k in range(output.numel()):
        seed = (_unit(output, k),)
        found = checks.gradients((output,), at, seed, create_graph, retain_graph=True)
        for j, (x, ct) in enumerate(zip(at, found, strict=True)):
            if strict and ct is None:
                raise GradientError(
                    f"Output {number} of the user-provided function is independent of input {j}."
                    + checks.STRICT
                )
            if strict and create_graph and ct is not None and not ct.requires_grad:
                raise GradientError(checks.BACK.constant.format(j))
            found_rows[j].append(zeros_like(x) if ct is None else ct)
    return tuple(
        _stacked(row, (*output.shape, *x.shape), x) for row, x in zip(found_rows, at, strict=True)
    )


def rows_at_once(
    output: Tensor, at: Tensors, create_graph: bool, chunk_size: int | None = None
) -> Tensors:
    """As `rows`, in one backward for all elements of the output (or for `chunk_size` of them)."""
    from tracegrad.func.batching import vmap

    def one_row(seed: Tensor) -> Tensors:
        found = checks.gradients((output,), at, (seed,), create_graph, retain_graph=True)
        return tuple(zeros_like(x) if ct is None else ct for x, ct in zip(at, found, strict=True))

    (basis,) = unit_vectors((output,))
    found = vmap(one_row, chunk_size=chunk_size)(basis)
    return tuple(row.reshape(*output.shape, *x.shape) for row, x in zip(found, at, strict=True))


def unit_vectors(like: Sequence[Tensor]) -> Tensors:
    """All unit vectors of a space made of several tensors: each tensor's share of them.

    Returns:
        For each tensor of shape s, one of shape (n, *s), where n counts the elements of all.
    """
    count = sum(x.numel() for x in like)
    result, start = [], 0
    for x in like:
        size = x.numel()
        array = np.zeros((count, size), x.dtype.numpy)
        array[start + np.arange(size), np.arange(size)] = 1
        result.append(literal(array.reshape(count, *x._array.shape), x))
        start += size
    return tuple(result)


def split_first(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """`x` cut along its first dimension into parts of the given sizes."""
    starts = np.cumsum([0, *sizes]).tolist()
    return [x[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def hessian(
    func: Callable[..., Any], inputs: Any, create_graph: bool = False, strict: bool = False,
    vectorize: bool = False, outer_jacobian_strategy: str = "reverse-mode",
) -> Any:  # fmt: skip
    """All second partial derivatives of `func` at `inputs`: the Jacobian of its gradient.

    Args:
        func: takes the inputs, returns one tensor of one element.
        inputs: a tensor, or a tuple of tensors, of floating dtype.
        create_graph: make the Hessian differentiable.
        strict: refuse independence of the inputs, instead of giving zeros.
        vectorize, outer_jacobian_strategy: as `vectorize` and `strategy` of `jacobian`, for the
            outer Jacobian; the inner one is always computed in reverse mode.
    Returns:
        `H[i][j]` of the shape of input i followed by that of input j; one tensor for one input.
    Raises:
        AssertionError: an unknown strategy.
        GradientError: the output is not a single element; strict mode found an independence.
        NotImplementedError, OperandError: as `jacobian`.
    Source: torch.autograd.functional.hessian.
    Example:
        >>> import tracegrad as tg
        >>> hessian(lambda x: (x**3).sum(), tg.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    in_tuple, at = checks.as_tensors(inputs, "inputs", "hessian")
    if outer_jacobian_strategy not in MODES:
        raise AssertionError(_STRATEGY)

    def scalar(*x: Tensor) -> Tensor:
        return checks.single_output(func(*x), "hessian", strict).squeeze()

    def gradient(*x: Tensor) -> Tensors:
        found: Tensors = jacobian(scalar, x, create_graph=True)
        if strict:
            checks.require_history(found, checks.CONSTANT_JACOBIAN)
        return found

    result = jacobian(gradient, at, create_graph, strict, vectorize, outer_jacobian_strategy)
    return result if in_tuple else result[0][0]
