"""Schedules that multiply the learning rate by a factor. Start reading at `StepLR`."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.optim.lr_scheduler.base import LRScheduler
from tracegrad.optim.optimizer import Optimizer


class StepLR(LRScheduler):
    """Multiply the learning rate by `gamma` every `step_size` epochs.

    Raises:
        ParameterError: `step_size` is not positive.
    Example:
        >>> import tracegrad as tg
        >>> optimizer = tg.optim.SGD([tg.ones(1, requires_grad=True)], lr=1.0)
        >>> schedule = tg.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.25]
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if step_size <= 0:
            raise ParameterError(f"StepLR: step_size must be positive, got {step_size}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Unchanged within a period."""
        if self.last_epoch == 0 or self.last_epoch % self.step_size:
            return self._current()
        return self._times(self.gamma)

    def closed_form(self) -> list[Any]:
        """initial_lr * gamma^(periods so far)."""
        factor = self.gamma ** (self.last_epoch // self.step_size)
        return [base * factor for base in self.base_lrs]


class MultiStepLR(LRScheduler):
    """Multiply the learning rate by `gamma` at each of the epochs `milestones`."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Unchanged between milestones; one listed twice counts twice."""
        times = self.milestones.get(self.last_epoch, 0)
        return self._times(self.gamma**times) if times else self._current()

    def closed_form(self) -> list[Any]:
        """initial_lr * gamma^(milestones so far)."""
        factor = self.gamma ** bisect_right(sorted(self.milestones.elements()), self.last_epoch)
        return [base * factor for base in self.base_lrs]


class ConstantLR(LRScheduler):
    """The learning rate times `factor` until epoch `total_iters`, then as it was.

    Raises:
        ParameterError: `factor` is not in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if not 0 <= factor <= 1.0:
            raise ParameterError("Constant multiplicative factor expected to be between 0 and 1.")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Multiplied in epoch 0, divided in epoch `total_iters`."""
        if self.last_epoch == 0:
            return self._times(self.factor)
        if self.last_epoch != self.total_iters:
            return self._current()
        return self._times(1.0 / self.factor)

    def closed_form(self) -> list[Any]:
        """initial_lr, times `factor` before `total_iters`."""
        over = self.last_epoch >= self.total_iters
        return [base * (self.factor + over * (1 - self.factor)) for base in self.base_lrs]


class LinearLR(LRScheduler):
    """A factor that goes from `start_factor` to `end_factor` in a line, in `total_iters` epochs.

    Raises:
        ParameterError: `start_factor` is not in (0, 1], or `end_factor` not in [0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0,
        total_iters: int = 5, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if start_factor > 1.0 or start_factor <= 0:
            raise ParameterError(
                "Starting multiplicative factor expected to be greater than 0 and less or equal "
                "to 1."
            )
        if end_factor > 1.0 or end_factor < 0:
            raise ParameterError("Ending multiplicative factor expected to be between 0 and 1.")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Times the ratio of this factor to the one before."""
        t, start, rise = self.last_epoch, self.start_factor, self.end_factor - self.start_factor
        if t == 0:
            return self._times(start)
        if self._is_initial or t > self.total_iters:
            return self._current()
        return self._times(1.0 + rise / (self.total_iters * start + (t - 1) * rise))

    def closed_form(self) -> list[Any]:
        """initial_lr * (start + (end - start) t / total)."""
        rise, t = self.end_factor - self.start_factor, min(self.total_iters, self.last_epoch)
        return [base * (self.start_factor + rise * t / self.total_iters) for base in self.base_lrs]


class ExponentialLR(LRScheduler):
    """Multiply the learning rate by `gamma` every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Times `gamma`, but not when made."""
        return self._current() if self._is_initial else self._times(self.gamma)

    def closed_form(self) -> list[Any]:
        """initial_lr * gamma^t."""
        return [base * self.gamma**self.last_epoch for base in self.base_lrs]


class PolynomialLR(LRScheduler):
    """initial_lr * (1 - t / total_iters)^power, 0 from epoch `total_iters` on."""

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Times the ratio of this factor to the one before."""
        t, total = self.last_epoch, self.total_iters
        if self._is_initial or t > total:
            return self._current()
        return self._times(((1.0 - t / total) / (1.0 - (t - 1) / total)) ** self.power)

    def closed_form(self) -> list[Any]:
        """The formula itself."""
        left = 1.0 - min(self.total_iters, self.last_epoch) / self.total_iters
        return [base * left**self.power for base in self.base_lrs]


# ---- factors that functions give ----------------------------------------------------------------


def _one_for_each(optimizer: Any, lr_lambda: Any) -> list[Callable[[int], float]]:
    count = len(getattr(optimizer, "param_groups", ()))
    if not isinstance(lr_lambda, Sequence):
        return [lr_lambda] * count
    if len(lr_lambda) != count:
        raise ParameterError(f"Expected {count} lr_lambdas, but got {len(lr_lambda)}")
    return list(lr_lambda)


class LambdaLR(LRScheduler):
    """The initial learning rate times `lr_lambda(epoch)`; one function, or one for each group.

    Raises:
        ParameterError: the number of functions is not that of the groups.
    """

    _functions = ("lr_lambdas",)

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Any],
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.lr_lambdas = _one_for_each(optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """`initial_lr * f(last_epoch)`."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * f(self.last_epoch) for base, f in pairs]


class MultiplicativeLR(LRScheduler):
    """Multiply the learning rate by `lr_lambda(epoch)` every epoch but the first.

    Raises:
        ParameterError: the number of functions is not that of the groups.
        OperandError: one of them cannot be called.
    """

    _functions = ("lr_lambdas",)

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Any],
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.lr_lambdas = _one_for_each(optimizer, lr_lambda)
        for f in self.lr_lambdas:
            if not callable(f):
                raise OperandError(f"lr_lambda should be a function, but got {type(f).__name__}")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """`lr * f(last_epoch)`."""
        if self._is_initial:
            return self._current()
        pairs = zip(self._current(), self.lr_lambdas, strict=True)
        return [lr * f(self.last_epoch) for lr, f in pairs]
