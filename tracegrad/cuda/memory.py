"""How much memory of a device is taken, by whom."""

from __future__ import annotations

from typing import Any

from tracegrad.cuda.devices import checked, index_of, is_available
from tracegrad.runtime.cuda import driver, memory

__all__ = [
    "empty_cache", "is_available", "max_memory_allocated", "max_memory_reserved", "mem_get_info",
    "memory_allocated", "memory_reserved", "memory_stats", "reset_peak_memory_stats",
]  # fmt: skip


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of a device, as the driver sees them.

    Example:
        >>> free, total = mem_get_info() if is_available() else (0, 0)
    """
    return driver.memory_info(checked(device))


def memory_allocated(device: Any = None) -> int:
    """Bytes of a device that tensors occupy now; 0 where there is no CUDA.

    Example:
        >>> memory_allocated() >= 0
        True
    """
    return memory.memory_allocated(index_of(device))


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that tensors occupied, since the start or `reset_peak_memory_stats`.

    Example:
        >>> max_memory_allocated() >= memory_allocated()
        True
    """
    return memory.max_memory_allocated(index_of(device))


def memory_reserved(device: Any = None) -> int:
    """Bytes that the pool holds, for tensors and for later.

    Example:
        >>> memory_reserved() >= memory_allocated()
        True
    """
    return memory.memory_reserved(index_of(device))


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the pool held, since the start or `reset_peak_memory_stats`.

    Example:
        >>> max_memory_reserved() >= memory_reserved()
        True
    """
    return memory.max_memory_reserved(index_of(device))


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let the peaks be what is there now.

    Example:
        >>> reset_peak_memory_stats()
        >>> max_memory_allocated() == memory_allocated()
        True
    """
    memory.reset_peak_memory_stats(index_of(device))


def memory_stats(device: Any = None) -> dict[str, int]:
    """Counters of the pool, by PyTorch's names.

    Example:
        >>> memory_stats()["num_ooms"]
        0
    """
    return memory.memory_stats(index_of(device))


def empty_cache() -> None:
    """Give the driver back what the pool holds for later.

    Example:
        >>> empty_cache()
    """
    memory.empty_cache()
