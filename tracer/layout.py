"""The words for how elements lie in memory: `strided`, and the memory formats.

Tensors here are strided, and keep their order (`preserve_format`) or are row-major
(`contiguous_format`); the other words exist so that asking for them is refused by name.
"""

from __future__ import annotations

from typing import Any

from tracegrad.ir.errors import OperandError, UnsupportedError


class _Word:
    """A named constant: compared by identity, pickled by name."""

    __slots__ = ("name",)
    _known: dict[str, Any] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self._known[name] = self

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (by_name, (self.name,))


class layout(_Word):
    """How a tensor is stored; only `strided` exists.

    Example:
        >>> import tracegrad as tg
        >>> tg.ones(2).layout
        torch.strided
    """

    __slots__ = ()


class memory_format(_Word):
    """The order of dimensions in memory that an operation is asked to give its result.

    Example:
        >>> import tracegrad as tg
        >>> tg.ones(2, 3).t().clone(memory_format=tg.contiguous_format).stride()
        (2, 1)
    """

    __slots__ = ()


def by_name(name: str) -> Any:
    """The word called `name`."""
    return _Word._known[name]


strided = layout("strided")
sparse_coo, sparse_csr = layout("sparse_coo"), layout("sparse_csr")
contiguous_format, preserve_format = (
    memory_format("contiguous_format"),
    memory_format("preserve_format"),
)
channels_last, channels_last_3d = memory_format("channels_last"), memory_format("channels_last_3d")


def need_format(function: str, given: Any) -> Any:
    """A memory format that tensors can have.

    Raises:
        OperandError: `given` is none.
        UnsupportedError: tensors do not have it.
    """
    if given is contiguous_format or given is preserve_format:
        return given
    if not isinstance(given, memory_format):
        raise OperandError(
            f"{function}(): argument 'memory_format' must be torch.memory_format, not "
            f"{type(given).__name__}"
        )
    raise UnsupportedError(
        f"{function}(): memory format {given} is not supported; use torch.contiguous_format or "
        "torch.preserve_format"
    )
