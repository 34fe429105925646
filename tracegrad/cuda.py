"""What there is of CUDA: nothing yet that tensors can live on, so `is_available()` is False."""

from __future__ import annotations


def is_available() -> bool:
    """True where tensors can be made on a CUDA device."""
    return False


def device_count() -> int:
    """Number of CUDA devices that tensors can be made on."""
    return 0
