"""Seeds. The numbers are counted, not kept by a device, so that all devices draw the same ones."""

from __future__ import annotations

from tracegrad.runtime.cuda import driver
from tracegrad.tracer import random


def manual_seed(seed: int) -> None:
    """Let draws start from a seed: that of the one generator, which the CPU draws from too.

    Without CUDA it changes nothing, as in PyTorch.

    Example:
        >>> manual_seed(0)
    """
    if driver.status() is None:
        random.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """As `manual_seed`: there is one generator for all devices.

    Example:
        >>> manual_seed_all(0)
    """
    manual_seed(seed)
