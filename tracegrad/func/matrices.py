"""Directional derivatives and whole matrices: `jvp`, `linearize`, `jacrev`, `jacfwd`, `hessian`.

Start reading at `jvp`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tracegrad.autograd.jacobians import rows, rows_at_once, split_first, unit_vectors
from tracegrad.autograd.pushforward import Pushforward
from tracegrad.func.batching import RANDOMNESS, vmap
from tracegrad.func.gradients import need_floating_outputs
from tracegrad.func.levels import (
    Chosen,
    Level,
    Tensors,
    check_tensors,
    differentiating,
    flat_outputs,
    printed,
    recording_gradients,
    transforming,
    with_aux,
)  # fmt: skip
from tracegrad.ir.errors import GradientError, ParameterError
from tracegrad.tracer.capture_hook import recording
from tracegrad.tracer.factories import zeros_like
from tracegrad.tracer.forward import Tangents
from tracegrad.tracer.pytree import Structure, flatten
from tracegrad.tracer.shapes import movedim
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

_JVP = "jvp(f, primals, tangents)"
_VJP = "vjp(f, *primals)"


def push(
    func: Callable[..., Any], primals: tuple[Any, ...], directions: Tensors, has_aux: bool
) -> tuple[Any, Any, Structure, Tensors, list[Tensor | None]]:
    """Run `func` in forward mode.

    Args:
        primals: the arguments; the tensors in them are what varies.
        directions: a tangent for each of those tensors.
    Returns:
        Output, aux, the output's structure, its tensors, and their tangents (None where zero).
    """
    forward = Tangents(state.grad_enabled)
    given: list[Any] = []
    structure = flatten(primals, given)
    with transforming(), recording(forward):
        duals = [forward.dual(x, dx) for x, dx in zip(given, directions, strict=True)]
    with differentiating(duals), recording(forward):
        output, aux = with_aux(func(*structure.build(iter(duals))), has_aux, _JVP)
    outputs, out_structure = flat_outputs(output, _JVP)
    return output, aux, out_structure, outputs, [forward.companion(y) for y in outputs]


def _filled(outputs: Tensors, tangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Zeros in place of tangents that are None."""
    return [zeros_like(y) if dy is None else dy for y, dy in zip(outputs, tangents, strict=True)]


def jvp(
    func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False,
    has_aux: bool = False,
) -> Any:  # fmt: skip
    """The output of `func` at `primals`, and its derivative in the direction `tangents`.

    Args:
        func: returns tensors, nested as it likes.
        primals: a tuple of arguments: tensors of floating dtype, nested alike.
        tangents: the same structure and shapes.
        strict: refuse outputs that do not depend on the primals, instead of giving zeros.
        has_aux: `func` returns `(output, aux)`.
    Returns:
        `(output, tangent)`, with `has_aux` also aux; the tangent is like the output.
    Raises:
        GradientError: structures differ, something is not a tensor, or strict mode.
        ShapeError: a tangent has another shape than its primal.
        ParameterError: a primal or tangent is not of floating dtype.
    Source: torch.func.jvp.
    Example:
        >>> import tracegrad as tg
        >>> jvp(lambda x: x * x, (tg.tensor([1.0, 2.0]),), (tg.tensor([1.0, 10.0]),))
        (tensor([1., 4.]), tensor([ 2., 40.]))
    """
    if not isinstance(primals, tuple):
        raise GradientError(
            f"{_JVP}: Expected primals to be a tuple. E.g. it should be valid to call f(*primals)."
        )
    given, directions = _jvp_operands(primals, tangents)
    for x, dx in zip(given, directions, strict=True):
        for what, value in (("primal", x), ("tangent", dx)):
            if not value.dtype.is_floating_point:
                raise ParameterError(
                    f"Expected {what} to be floating point or complex, but got: {value.dtype}"
                )
    output, aux, structure, outputs, found = push(func, primals, tuple(directions), has_aux)
    if strict and any(dy is None for dy in found):
        raise GradientError(
            "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. "
            "This is not allowed with strict=True."
        )
    results = (output, structure.build(iter(_filled(outputs, found))))
    return (*results, aux) if has_aux else results


def _jvp_operands(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
    """Both flat, after checking that they are tensors in the same structure."""
    given: list[Any] = []
    directions: list[Any] = []
    structures = flatten(primals, given), flatten(tangents, directions)
    if structures[0] != structures[1]:
        raise GradientError(
            f"{_JVP}: Expected primals and tangents to have the same python structure. For "
            "example, if primals is a tuple of 3 tensors, tangents also must be. Got primals with "
            f"structure {printed(structures[0], len(given))} and tangents with structure "
            f"{printed(structures[1], len(directions))}"
        )
    for name, values in (("primals", given), ("tangents", directions)):
        if not values:
            raise GradientError(f"{_JVP}: Expected {name} to contain at least one Tensor.")
        for x in values:
            if not isinstance(x, Tensor):
                raise GradientError(
                    f"{_JVP}: Expected {name} to only contain Tensors, got {type(x)}"
                )
    return given, directions


class _Linear:
    """A function linearized at one point: its output, and the map of tangents.

    The map is the derivative of a backward pass that is linear in its cotangents, so `func` does
    not run again.
    """

    def __init__(self, func: Callable[..., Any], primals: tuple[Any, ...]) -> None:
        self.level = Level()
        given: list[Any] = []
        self.structure = flatten(primals, given)
        self.count = len(given)
        with recording_gradients():
            self.at = self.level.enter(given)
            with differentiating(self.at):
                self.output = func(*self.structure.build(iter(self.at)))
            self.outputs, self.out_structure = flat_outputs(self.output, _JVP)
            self.push = Pushforward(self.outputs, self.at)
        self.level.own(self.push.seeds)

    def __call__(self, tangents: Sequence[Tensor]) -> Any:
        """Tangents of the outputs, in the output's structure."""
        create = state.grad_enabled and self.level.reaches_outside([*self.outputs, *tangents])
        filled = _filled(self.outputs, self.push(tangents, create))
        return self.level.leave(self.out_structure.build(iter(filled)))


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """The output of `func` at `primals`, and its linear approximation there as a function.

    Returns:
        `(output, jvp_fn)`; `jvp_fn(*tangents)` gives what `jvp` gives, without running `func`.
    Raises:
        GradientError: tangents of another structure, shape or dtype than the primals.
        ParameterError: a primal is not a tensor.
    Source: torch.func.linearize.
    Example:
        >>> import tracegrad as tg
        >>> output, jvp_fn = linearize(lambda x: x * x, tg.tensor([1.0, 2.0]))
        >>> jvp_fn(tg.tensor([1.0, 10.0]))
        tensor([ 2., 40.])
    """
    linear = _Linear(func, primals)

    def jvp_fn(*tangents: Any) -> Any:
        given: list[Any] = []
        structure = flatten(tangents, given)
        if structure != linear.structure:
            raise GradientError(
                f"Expected the tangents {printed(structure, len(given))} to have the same argspec "
                f"as the primals {printed(linear.structure, linear.count)}"
            )
        for i, (x, dx) in enumerate(zip(linear.at, given, strict=True)):
            for what in ("shape", "dtype"):
                want, have = getattr(x, what), getattr(dx, what, type(dx))
                if have != want:
                    raise GradientError(
                        f"tangent:{i} with {what} {have} in flattened pytree doesn't match the "
                        f"{what} {want} of the corresponding primal."
                    )
        return linear(given)

    return linear.level.leave(linear.output), jvp_fn


# ---- matrices -----------------------------------------------------------------------------------


def jacrev(
    func: Callable[..., Any], argnums: Any = 0, *, has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """A function that computes the Jacobian of `func`, in reverse mode.

    The backward runs once for all elements of an output, as a batch.

    Args:
        func: returns tensors, nested as it likes.
        argnums: number of the argument, or a tuple of numbers; chosen arguments are tensors of
            floating dtype, or nested tuples, lists and dicts of them.
        has_aux: `func` returns `(output, aux)`; so does the function made.
        chunk_size: at most so many rows at once, to save memory. With 1 the backward runs row by
            row, and may do what a batch cannot (read values, say).
    Returns:
        A function of the same arguments. Its result is nested as the output, and within as the
        chosen arguments; each tensor has the shape of its output followed by its argument's.
    Raises:
        ParameterError: `chunk_size` is not positive; (at a call) an argument is not a tensor.
        GradientError: (at a call) `argnums` does not fit, or an output is not a tensor.
    Source: torch.func.jacrev.
    Example:
        >>> import tracegrad as tg
        >>> jacrev(lambda x: x * x)(tg.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    if chunk_size is not None and chunk_size <= 0:
        raise ParameterError("jacrev: `chunk_size` should be greater than 0.")

    @functools.wraps(func, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        level = Level()
        with recording_gradients():
            chosen = Chosen(args, argnums)
            at = level.enter(chosen.leaves)
            with differentiating(at, (args, kwargs)):
                result = func(*chosen.replaced(at), **kwargs)
            output, aux = with_aux(result, has_aux, _VJP)
            outputs, structure = flat_outputs(output, _VJP)
            need_floating_outputs(outputs)
            create = level.reaches_outside(outputs)
            if chunk_size == 1:
                found = [rows(i, x, at, create) for i, x in enumerate(outputs)]
            else:
                found = [rows_at_once(x, at, create, chunk_size) for x in outputs]
            result = level.leave(_nested(found, structure, chosen.structure))
        return (result, level.leave(aux)) if has_aux else result

    return jacobian


def jacfwd(
    func: Callable[..., Any], argnums: Any = 0, has_aux: bool = False, *, randomness: str = "error"
) -> Callable[..., Any]:
    """As `jacrev`, in forward mode: cheaper for more outputs than inputs.

    `func` runs once, with a batch of tangents: one for each element of its arguments.

    Args:
        func, argnums, has_aux: as for `jacrev`.
        randomness: whether random operations of `func` "error", draw "different" numbers for each
            column, or the "same".
    Raises:
        GradientError: an unknown `randomness`; (at a call) as `jacrev`, and random numbers.
        ParameterError: (at a call) an argument is not a tensor.
    Source: torch.func.jacfwd.
    Example:
        >>> import tracegrad as tg
        >>> jacfwd(lambda x: x * x)(tg.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    if randomness not in RANDOMNESS:
        raise GradientError(
            "Only allowed values for randomness are 'error', 'different', or 'same'. "
            f"Got {randomness}"
        )

    @functools.wraps(func, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        chosen = Chosen(args, argnums)
        check_tensors(chosen.leaves)

        def of_chosen(*leaves: Tensor) -> Any:
            return func(*chosen.replaced(leaves), **kwargs)

        found, structure, aux = columns_at_once(of_chosen, chosen.leaves, has_aux, randomness)
        result = _nested(found, structure, chosen.structure)
        return (result, aux) if has_aux else result

    return jacobian


def columns_at_once(
    func: Callable[..., Any], at: Sequence[Tensor], has_aux: bool, randomness: str
) -> tuple[list[Tensors], Structure, Any]:
    """The Jacobians of all outputs, each a tuple over the tensors `at`; structure; aux."""
    kept: list[Any] = []

    def one_column(*directions: Tensor) -> Any:
        _, aux, structure, outputs, found = push(func, tuple(at), directions, has_aux)
        kept.append((aux, structure, outputs))
        return tuple(_filled(outputs, found))

    columns = vmap(one_column, randomness=randomness)(*unit_vectors(at))
    aux, structure, outputs = kept[0]
    blocks = []
    for y in columns:
        shape = tuple(y.shape[1:])
        parts = split_first(y, [x.numel() for x in at])
        blocks.append(tuple(
            movedim(part, 0, -1).reshape(*shape, *x.shape)
            for part, x in zip(parts, at, strict=True)
        ))  # fmt: skip
    return blocks, structure, aux


def _nested(found: list[Tensors], outer: Structure, inner: Structure) -> Any:
    """Blocks [i][j] nested as the output, and within as the arguments."""
    return outer.build(inner.build(iter(row)) for row in found)


def hessian(func: Callable[..., Any], argnums: Any = 0) -> Callable[..., Any]:
    """A function that computes all second derivatives of `func`: `jacfwd(jacrev(func))`.

    Args:
        func, argnums: as for `jacrev`.
    Raises:
        GradientError, ParameterError: (at a call) as `jacrev`.
    Source: torch.func.hessian.
    Example:
        >>> import tracegrad as tg
        >>> hessian(lambda x: (x**3).sum())(tg.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    return jacfwd(jacrev(func, argnums), argnums)
