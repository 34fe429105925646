"""Einstein summation, operands contracted in pairs from left to right through `dot_general`.

Labels are the letters of the equation; the axes of an ellipsis get the labels "0", "1", ...,
counted from the last, so that ellipses of different lengths line up as in broadcasting.
Start reading at `einsum`.
"""

from __future__ import annotations

from typing import Any

from tracegrad.ir import ops
from tracegrad.ir.composite_linalg import diagonal_of_pair, permuted
from tracegrad.ir.errors import ShapeError
from tracegrad.ir.primitive import type_of
from tracegrad.ir.product_dtypes import check_bmm

Labels = tuple[str, ...]
Labelled = tuple[Any, Labels]
"""A tensor with one label per axis."""


def einsum(equation: str, *operands: Any) -> Any:
    """Sum of products over labelled axes.

    Args:
        equation: "ij,jk->ik": one term of letters per operand and the result's after the arrow;
            "..." stands for the axes not named. Without an arrow the result has the letters that
            occur once, in alphabetical order. A letter twice in one term takes the diagonal.
        operands: one tensor per term, of one dtype. Sizes of one label agree or are 1.
    Returns:
        A tensor with the axes of the result's term.
    Raises:
        ShapeError: the equation does not fit the operands (PyTorch's texts).
    Source: PyTorch documentation, `torch.einsum`.
    Example:
        >>> import numpy as np
        >>> einsum("bij,bjk->bik", np.ones((2, 3, 4)), np.ones((2, 4, 5))).shape
        (2, 3, 5)
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, result = parse(equation, [len(x.shape) for x in operands])
    _check_sizes(terms, operands)
    pending = [_diagonals(x, t) for x, t in zip(operands, terms, strict=True)]
    current, *rest = pending
    while rest:
        following, *rest = rest
        wanted = {*result}.union(*(labels for _, labels in rest))
        current = _pair(current, following, wanted)
    return _finish(current, result)


# ---- the equation -------------------------------------------------------------------------------


def parse(equation: str, ndims: list[int]) -> tuple[list[Labels], Labels]:
    """Labels of each operand and of the result.

    Raises:
        ShapeError: the text is malformed, or names other axes than the operands have.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        which = "fewer" if len(terms) > len(ndims) else "more"
        raise ShapeError(f"einsum(): {which} operands were provided than specified in the equation")
    offset = 0
    labels = []
    for i, (term, ndim) in enumerate(zip(terms, ndims, strict=True)):
        _check_letters(term, offset, f"operand {i}")
        labels.append(_term_labels(term, ndim, i))
        offset += len(term) + 1
    longest = max((t for t in labels), key=lambda t: sum(a.isdigit() for a in t))
    ellipsis = tuple(a for a in longest if a.isdigit())
    if not arrow:
        flat = [a for t in labels for a in t]
        return labels, (
            *ellipsis,
            *sorted(a for a in set(flat) if a.isalpha() and flat.count(a) == 1),
        )
    _check_letters(right, len(left) + 2, "the output")
    before, dots, after = right.partition("...")
    result = (*before, *(ellipsis if dots else ()), *after)
    for label in result:
        if result.count(label) > 1:
            raise ShapeError(
                f"einsum(): output subscript {label} appears more than once in the output"
            )
        if not any(label in t for t in labels):
            raise ShapeError(
                f"einsum(): output subscript {label} does not appear in the equation for any "
                f"input operand"
            )
    return labels, result


def _check_letters(term: str, offset: int, owner: str) -> None:
    if term.count("...") > 1:
        raise ShapeError(f"einsum(): found '.' for {owner} for which an ellipsis was already found")
    plain = term.replace("...", "", 1)
    if "." in plain:
        raise ShapeError(f"einsum(): found '.' for {owner} that is not part of any ellipsis")
    for i, letter in enumerate(term):
        if letter != "." and not (letter.isascii() and letter.isalpha()):
            raise ShapeError(
                f"einsum(): invalid subscript given at index {offset + i} in the equation string, "
                f"subscripts must be in [a-zA-Z]"
            )


def _term_labels(term: str, ndim: int, i: int) -> Labels:
    before, dots, after = term.partition("...")
    named = len(before) + len(after)
    if named > ndim or (named < ndim and not dots):
        how = "is more than" if dots else "does not match"
        tail = "" if dots else " and no ellipsis was given"
        raise ShapeError(
            f"einsum(): the number of subscripts in the equation ({named}) {how} the number of "
            f"dimensions ({ndim}) for operand {i}{tail}"
        )
    hidden = tuple(str(k) for k in reversed(range(ndim - named)))
    return (*before, *hidden, *after)


def _check_sizes(terms: list[Labels], operands: tuple[Any, ...]) -> None:
    seen: dict[str, int] = {}
    for i, (labels, x) in enumerate(zip(terms, operands, strict=True)):
        own: dict[str, int] = {}
        for label, size in zip(labels, x.shape, strict=True):
            if own.setdefault(label, size) != size:
                raise ShapeError(
                    f"einsum(): subscript {label} is repeated for operand {i} but the sizes don't "
                    f"match, {size} != {own[label]}"
                )
        for label, size in own.items():
            before = seen.get(label, 1)
            if 1 not in (before, size) and before != size:
                raise ShapeError(
                    f"einsum(): subscript {label} has size {size} for operand {i} which does not "
                    f"broadcast with previously seen size {before}"
                )
            seen[label] = size if before == 1 else before


# ---- the computation ----------------------------------------------------------------------------


def _diagonals(x: Any, labels: Labels) -> Labelled:
    """Merge axes that carry the same label."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = diagonal_of_pair(x, first, second)
            labels = (*(a for k, a in enumerate(labels) if k not in (first, second)), label)
    return x, labels


def _pair(left: Labelled, right: Labelled, wanted: set[str]) -> Labelled:
    """Contract two tensors over the labels that they share and nobody else wants."""
    x, x_labels = _sum_out(*left, keep=wanted | {*right[1]})
    y, y_labels = _sum_out(*right, keep=wanted | {*x_labels})
    (x, x_labels), (y, y_labels) = _drop_ones(x, x_labels, y, y_labels)
    (x, x_labels), (y, y_labels) = _drop_ones(y, y_labels, x, x_labels)[::-1]
    # An axis whose partner of size 1 was dropped may now be summed on its own.
    x, x_labels = _sum_out(x, x_labels, keep=wanted | {*y_labels})
    y, y_labels = _sum_out(y, y_labels, keep=wanted | {*x_labels})
    shared = [a for a in x_labels if a in y_labels]
    batch = tuple(a for a in shared if a in wanted)
    summed = tuple(a for a in shared if a not in wanted)
    if not summed:
        return _broadcast_product(x, x_labels, y, y_labels)
    check_bmm(x, y)
    out = ops.dot_general(
        x,
        y,
        contract=(_positions(x_labels, summed), _positions(y_labels, summed)),
        batch=(_positions(x_labels, batch), _positions(y_labels, batch)),
    )
    free_x = tuple(a for a in x_labels if a not in shared)
    free_y = tuple(a for a in y_labels if a not in shared)
    return out, batch + free_x + free_y


def _positions(labels: Labels, chosen: Labels) -> tuple[int, ...]:
    return tuple(labels.index(a) for a in chosen)


def _drop_ones(x: Any, x_labels: Labels, y: Any, y_labels: Labels) -> tuple[Labelled, Labelled]:
    """Drop axes of x that have size 1 where y has the label with another size."""
    gone = {
        a
        for a in x_labels
        if a in y_labels and x.shape[x_labels.index(a)] == 1 != y.shape[y_labels.index(a)]
    }
    if not gone:
        return (x, x_labels), (y, y_labels)
    kept = tuple(a for a in x_labels if a not in gone)
    sizes = tuple(n for a, n in zip(x_labels, x.shape, strict=True) if a not in gone)
    return (ops.reshape(x, shape=sizes), kept), (y, y_labels)


def _sum_out(x: Any, labels: Labels, keep: set[str]) -> Labelled:
    axes = tuple(i for i, a in enumerate(labels) if a not in keep)
    if not axes:
        return x, labels
    total = ops.reduce_sum(x, axes=axes, keepdims=False)
    return _same_dtype(total, x), tuple(a for a in labels if a in keep)


def _same_dtype(total: Any, x: Any) -> Any:
    """Integer sums come out as int64; einsum keeps the operands' dtype."""
    if total.dtype == x.dtype:
        return total
    return ops.cast(total, dtype=type_of(x).dtype)


def _broadcast_product(x: Any, x_labels: Labels, y: Any, y_labels: Labels) -> Labelled:
    """Nothing is summed: multiply element by element, the axes lined up by label."""
    out = (*x_labels, *(a for a in y_labels if a not in x_labels))
    return ops.mul(_lined_up(x, x_labels, out), _lined_up(y, y_labels, out)), out


def _lined_up(x: Any, labels: Labels, out: Labels) -> Any:
    order = tuple(sorted(range(len(labels)), key=lambda i: out.index(labels[i])))
    x = permuted(x, order)
    sizes = {labels[a]: n for a, n in zip(order, x.shape, strict=True)}
    shape = tuple(sizes.get(a, 1) for a in out)
    return x if tuple(x.shape) == shape else ops.reshape(x, shape=shape)


def _finish(current: Labelled, result: Labels) -> Any:
    x, labels = _sum_out(*current, keep={*result})
    return permuted(x, _positions(labels, result))
