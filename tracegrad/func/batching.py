"""`vmap`: a function of one example becomes a function of many.

The function runs once, on the first example; in step with it every operation is applied to all
examples at once, by the batch rule of its primitive (see `tracegrad.tracer.batching`). Start
reading at `vmap`, then `run`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tracegrad.func.levels import printed, transforming
from tracegrad.ir.errors import DimensionError, GradientError, ParameterError
from tracegrad.tracer.batching import Examples
from tracegrad.tracer.capture_hook import recording
from tracegrad.tracer.joining import cat
from tracegrad.tracer.pytree import LEAF, Structure, flatten
from tracegrad.tracer.shapes import movedim
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

RANDOMNESS = ("error", "different", "same")


def vmap(
    func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error", *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """A function that applies `func` to every example of a batch, as one batch.

    `func` sees tensors without the batch dimension. It runs once; what it prints or appends
    happens once. It may use other transforms inside, and be differentiated from outside.

    Args:
        func: takes and returns tensors, nested in tuples, lists and dicts.
        in_dims: for each argument the dimension along which its examples lie, or None for an
            argument that is the same for all; one number for all arguments, or nested as they are.
        out_dims: where the batch dimension of each result goes; None for results that are the
            same for all examples (which need not be tensors).
        randomness: random operations inside "error", draw "different" numbers for each example,
            or the "same".
        chunk_size: at most so many examples at once, to save memory; `func` then runs several
            times.
    Returns:
        A function of the same arguments. Keyword arguments are the same for all examples.
    Raises:
        ParameterError: (also at a call) `in_dims`, `out_dims` or `chunk_size` do not fit.
        GradientError: an unknown `randomness`; (at a call) the path of `func` depends on values
            that differ between the examples, it draws random numbers, or writes such values to a
            tensor from outside.
        NotBatchableError: (at a call) an operation has no batch rule.
    Source: torch.func.vmap.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> vmap(lambda row: row @ row)(x)
        tensor([ 5., 25.])
        >>> from tracegrad.func import grad
        >>> vmap(grad(lambda row: (row**3).sum()))(x)
        tensor([[ 3., 12.],
                [27., 48.]])
    """
    if randomness not in RANDOMNESS:
        raise GradientError(
            "Only allowed values for randomness are 'error', 'different', or 'same'. "
            f"Got {randomness}"
        )
    if chunk_size is not None and chunk_size <= 0:
        raise ParameterError(
            f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})"
        )

    @functools.wraps(func, updated=())
    def batched(*args: Any, **kwargs: Any) -> Any:
        call = _Call(func, in_dims, out_dims, args, kwargs)
        return call.run(randomness, chunk_size)

    return batched


class _Call:
    """One call of a function made by `vmap`: its arguments, flat, with their dimensions."""

    def __init__(
        self, func: Callable[..., Any], in_dims: Any, out_dims: Any, args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:  # fmt: skip
        self.func, self.in_dims, self.out_dims = func, in_dims, out_dims
        self.name = getattr(func, "__name__", repr(func))
        if not isinstance(in_dims, int | tuple):
            raise ParameterError(
                f"{self._inputs()}: expected `in_dims` to be int or a (potentially nested) tuple "
                f"matching the structure of inputs, got: {type(in_dims)}."
            )
        if not args:
            raise ParameterError(
                f"vmap({self.name})(<inputs>): got no inputs. Maybe you forgot to add inputs, or "
                "you are trying to vmap over a function with no inputs. The latter is unsupported."
            )
        self.leaves: list[Any] = []
        self.structure = flatten((args, kwargs), self.leaves)
        given, _ = self.structure.parts
        dims = spread(in_dims, given)
        if dims is None:
            raise ParameterError(
                f"{self._inputs()}: in_dims is not compatible with the structure of `inputs`. "
                f"in_dims has structure {_shown(flatten(in_dims, []))} but inputs has structure "
                f"{_shown(given)}."
            )
        self.dims = [self._checked(d, x) for d, x in zip(dims, self.leaves)]
        self.dims += [None] * (len(self.leaves) - len(dims))
        self.size = self._size()

    def _inputs(self) -> str:
        return f"vmap({self.name}, in_dims={self.in_dims}, ...)(<inputs>)"

    def _checked(self, dim: Any, x: Any) -> int | None:
        """A dimension counted from 0."""
        if dim is None:
            return None
        where = self._inputs()
        if not isinstance(dim, int):
            raise ParameterError(
                f"{where}: Got in_dim={dim} for an input but in_dim must be either an integer "
                "dimension or None."
            )
        if not isinstance(x, Tensor):
            raise ParameterError(
                f"{where}: Got in_dim={dim} for an input but the input is of type {type(x)}. We "
                "cannot vmap over non-Tensor arguments, please use None as the respective in_dim"
            )
        if not -x.ndim <= dim < x.ndim:
            raise ParameterError(
                f"{where}: Got in_dim={dim} for some input, but that input is a Tensor of "
                f"dimensionality {x.ndim} so expected in_dim to satisfy "
                f"-{x.ndim} <= in_dim < {x.ndim}."
            )
        return dim % x.ndim

    def _size(self) -> int:
        found = [x.shape[d] for d, x in zip(self.dims, self.leaves) if d is not None]
        if not found:
            raise ParameterError("vmap: Expected at least one Tensor to vmap over")
        if any(n != found[0] for n in found):
            raise ParameterError(
                "vmap: Expected all tensors to have the same size in the mapped dimension, got "
                f"sizes {found} for the mapped dimension"
            )
        return found[0]

    # ---- running --------------------------------------------------------------------------------

    def run(self, randomness: str, chunk_size: int | None) -> Any:
        """The results, with their batch dimensions where `out_dims` wants them."""
        if chunk_size is None or self.size <= chunk_size:
            structure, results, _ = self._run(self.leaves, self.size, randomness)
            return structure.build(iter(results))
        parts = []
        for start in range(0, self.size, chunk_size):
            count = min(chunk_size, self.size - start)
            some = [
                x if d is None else x.narrow(d, start, count)
                for d, x in zip(self.dims, self.leaves, strict=True)
            ]
            parts.append(self._run(some, count, randomness))
        structure, _, dims = parts[0]
        columns = zip(*(results for _, results, _ in parts), strict=True)
        return structure.build(
            column[0] if d is None else cat(list(column), d)
            for d, column in zip(dims, columns, strict=True)
        )

    def _run(
        self, leaves: Sequence[Any], size: int, randomness: str
    ) -> tuple[Structure, list[Any], list[Any]]:
        """Results and their batch dimensions, flat."""
        examples = Examples(size, randomness, state.grad_enabled)
        with transforming():
            given = iter(
                x if d is None else examples.example(x, d)
                for d, x in zip(self.dims, leaves, strict=True)
            )
            args, kwargs = self.structure.build(given)
            with recording(examples):
                output = self.func(*args, **kwargs)
        found: list[Any] = []
        structure = flatten(output, found)
        dims = self._dims_of_results(structure)
        results = [self._result(examples, x, d) for d, x in zip(dims, found, strict=True)]
        del given, args, kwargs, output, found
        examples.close()
        return structure, results, dims

    def _dims_of_results(self, structure: Structure) -> list[Any]:
        wanted = self.out_dims
        listed: list[Any] = []
        flatten(wanted, listed)
        if not all(dim is None or type(dim) is int for dim in listed):
            raise ParameterError(
                f"vmap({self.name}, ..., out_dims={wanted}): `out_dims` must be an int, None or a "
                "python collection of ints representing where in the outputs the vmapped dimension "
                "should appear."
            )
        dims = spread(wanted, structure)
        if dims is None:
            raise ParameterError(
                f"vmap({self.name}, ..., out_dims={wanted})(<inputs>): out_dims is not compatible "
                "with the structure of `outputs`. out_dims has structure "
                f"{_shown(flatten(wanted, []))} but outputs has structure {_shown(structure)}."
            )
        return dims

    def _result(self, examples: Examples, x: Any, dim: int | None) -> Any:
        name = f"vmap({self.name}, ...): `{self.name}`"
        if dim is None:
            if examples.companion(x) is not None:
                raise ParameterError(f"{name} can not return a BatchedTensor when out_dim is None")
            return x
        if not isinstance(x, Tensor):
            raise ParameterError(
                f"{name} must only return Tensors, got type {type(x)}. Did you mean to set "
                "out_dims= to None for output?"
            )
        many = examples.batch(x)
        if not -many.ndim <= dim < many.ndim:
            raise DimensionError(
                "Dimension out of range (expected to be in range of "
                f"[{-many.ndim}, {many.ndim - 1}], but got {dim})"
            )
        return movedim(many, 0, dim) if dim % many.ndim else many


def spread(dims: Any, structure: Structure) -> list[Any] | None:
    """One dimension per leaf of `structure`; None where `dims` is nested otherwise."""
    if structure.kind is None:
        return [dims] if not isinstance(dims, tuple | list | dict) else None
    if not isinstance(dims, tuple | list | dict):
        leaves: list[Any] = []
        _count(structure, leaves)
        return [dims] * len(leaves)
    keys = tuple(dims) if isinstance(dims, dict) else ()
    same_kind = isinstance(dims, dict) == bool(issubclass(structure.kind, dict))
    if not same_kind or len(dims) != len(structure.parts) or set(keys) != set(structure.keys):
        return None
    values = [dims[k] for k in structure.keys] if keys else list(dims)
    result: list[Any] = []
    for value, part in zip(values, structure.parts, strict=True):
        found = spread(value, part)
        if found is None:
            return None
        result.extend(found)
    return result


def _count(structure: Structure, leaves: list[Any]) -> None:
    """Append one entry per leaf."""
    if structure.kind is None:
        leaves.append(LEAF)
    for part in structure.parts:
        _count(part, leaves)


def _shown(structure: Structure) -> str:
    """A structure with stars for leaves: `(*, {'a': *})`."""
    leaves: list[Any] = []
    _count(structure, leaves)
    return printed(structure, len(leaves))
