"""Schedules along a cosine. Start reading at `CosineAnnealingLR`."""

from __future__ import annotations

import math
from typing import Any

from tracegrad.ir.errors import ParameterError
from tracegrad.optim.lr_scheduler.base import LRScheduler, postponed
from tracegrad.optim.optimizer import Optimizer


class CosineAnnealingLR(LRScheduler):
    """From the initial learning rate down to `eta_min` in `T_max` epochs along a cosine, and back.

    Each step goes on from the learning rate it finds, so it may be combined with others.

    Raises:
        ParameterError: `T_max` is not positive.
    Source: Loshchilov and Hutter, arXiv:1608.03983.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_max <= 0:
            raise ParameterError(f"CosineAnnealingLR: T_max must be positive, got {T_max}")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """eta_min + (lr - eta_min) * (1 + cos(pi t / T)) / (1 + cos(pi (t - 1) / T))."""
        t, period, low = self.last_epoch, self.T_max, self.eta_min
        if self._is_initial:
            return self._current()
        if self._step_count == 1 and t > 0:
            return self.closed_form()
        if (t - 1 - period) % (2 * period) == 0:  # the step before was at eta_min: 0 / 0 above
            rise = 1 - math.cos(math.pi / period)
            pairs = zip(self._current(), self.base_lrs, strict=True)
            return [lr + (base - low) * rise / 2 for lr, base in pairs]
        ratio = (1 + math.cos(math.pi * t / period)) / (1 + math.cos(math.pi * (t - 1) / period))
        return [ratio * (lr - low) + low for lr in self._current()]

    def closed_form(self) -> list[Any]:
        """eta_min + (initial_lr - eta_min) * (1 + cos(pi t / T)) / 2."""
        height = 1 + math.cos(math.pi * self.last_epoch / self.T_max)
        return [self.eta_min + (base - self.eta_min) * height / 2 for base in self.base_lrs]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Down to `eta_min` along a cosine in `T_0` epochs, again from the top in `T_0 * T_mult`, ...

    Raises:
        ParameterError: `T_0` or `T_mult` is no positive int, or `eta_min` no number.
    Source: Loshchilov and Hutter, arXiv:1608.03983.
    """

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if T_0 <= 0 or not isinstance(T_0, int):
            raise ParameterError(f"Expected positive integer T_0, but got {T_0}")
        if T_mult < 1 or not isinstance(T_mult, int):
            raise ParameterError(f"Expected integer T_mult >= 1, but got {T_mult}")
        if not isinstance(eta_min, float | int):
            raise ParameterError(
                f"Expected float or int eta_min, but got {eta_min} of type {type(eta_min)}"
            )
        self.T_0 = T_0
        self.T_i = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """eta_min + (initial_lr - eta_min) * (1 + cos(pi T_cur / T_i)) / 2."""
        height = 1 + math.cos(math.pi * self.T_cur / self.T_i)
        return [self.eta_min + (base - self.eta_min) * height / 2 for base in self.base_lrs]

    @postponed
    def step(self, epoch: float | None = None) -> None:
        """Go on by one epoch, or to `epoch`, which may lie between two.

        Raises:
            ParameterError: `epoch` is negative.
        """
        if epoch is None and self.last_epoch < 0:
            epoch = 0
        if epoch is None:
            epoch = self.last_epoch + 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur %= self.T_i
                self.T_i *= self.T_mult
        else:
            self._locate(epoch)
        self.last_epoch = math.floor(epoch)
        self._write(self.get_lr())

    def _locate(self, epoch: float) -> None:
        """Find the period of `epoch`, `T_i` long, and the place `T_cur` in it."""
        if epoch < 0:
            raise ParameterError(f"Expected non-negative epoch, but got {epoch}")
        first, growth = self.T_0, self.T_mult
        if epoch < first:
            self.T_i, self.T_cur = first, epoch
        elif growth == 1:
            self.T_cur = epoch % first
        else:
            n = int(math.log(epoch / first * (growth - 1) + 1, growth))
            self.T_cur = epoch - first * (growth**n - 1) / (growth - 1)
            self.T_i = first * growth**n
