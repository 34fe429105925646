"""Seeds of devices."""

from __future__ import annotations

from tracegrad.runtime.cuda import current, driver


def manual_seed(seed: int) -> None:
    """Let draws on the current device start from a seed. Without CUDA it is remembered.

    Example:
        >>> manual_seed(0)
    """
    current.seeds[current.device()] = int(seed)


def manual_seed_all(seed: int) -> None:
    """Let draws on all devices start from a seed. Without CUDA it is remembered.

    Example:
        >>> manual_seed_all(0)
    """
    for number in range(max(1, driver.device_count())):
        current.seeds[number] = int(seed)
