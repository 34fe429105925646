"""Schedules that go up and down, and the momentum against them. Start reading at `OneCycleLR`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tracegrad.ir.errors import ParameterError
from tracegrad.optim.lr_scheduler.base import LRScheduler, for_groups, need_optimizer, write
from tracegrad.optim.optimizer import Optimizer


class _Cycling(LRScheduler):
    """Writes the momentum, or the first of Adam's betas."""

    cycle_momentum: bool

    def _start_momentum(self, base: Any, top: Any, last_epoch: int) -> tuple[list[Any], list[Any]]:
        """Momentum bounds of every group, noted in the groups."""
        optimizer = self.optimizer
        if "momentum" not in optimizer.defaults and "betas" not in optimizer.defaults:
            raise ParameterError(
                "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
            )
        self.use_beta1 = "betas" in optimizer.defaults
        lows = for_groups("base_momentum", optimizer, base)
        highs = for_groups("max_momentum", optimizer, top)
        if last_epoch == -1:
            for group, low, high in zip(optimizer.param_groups, lows, highs, strict=True):
                self._write_momentum(group, high)
                group["max_momentum"] = high
                group["base_momentum"] = low
        return lows, highs

    def _write_momentum(self, group: dict[str, Any], value: float) -> None:
        if self.use_beta1:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value


class CyclicLR(_Cycling):
    """Between `base_lr` and `max_lr` and back, over and over; the momentum the other way.

    Args:
        optimizer: whose groups are changed.
        base_lr, max_lr: bounds, or one for each group.
        step_size_up, step_size_down: steps of each half; down as many as up by default.
        mode: "triangular"; "triangular2" halves the height in each cycle; "exp_range" multiplies
            it by `gamma` in each step.
        gamma: for "exp_range".
        scale_fn: instead of `mode`: the height as a function of the cycle or the step.
        scale_mode: "cycle" or "iterations", what `scale_fn` is given.
        cycle_momentum: whether the momentum moves.
        base_momentum, max_momentum: its bounds, or one for each group.
        last_epoch: -1 to start.
    Raises:
        ParameterError: an unknown mode, lists of a wrong length, or no momentum to move.
        OperandError: `optimizer` is none.
    Source: Smith, arXiv:1506.01186.
    """

    _functions = ("_scale_fn_custom",)

    def __init__(
        self, optimizer: Optimizer, base_lr: Any, max_lr: Any, step_size_up: int = 2000,
        step_size_down: int | None = None, mode: str = "triangular", gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None, scale_mode: str = "cycle",
        cycle_momentum: bool = True, base_momentum: Any = 0.8, max_momentum: Any = 0.9,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.optimizer = need_optimizer(optimizer)
        base_lrs = for_groups("base_lr", optimizer, base_lr)
        self.max_lrs = for_groups("max_lr", optimizer, max_lr)
        up = float(step_size_up)
        self.total_size = up + (up if step_size_down is None else float(step_size_down))
        self.step_ratio = up / self.total_size
        if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
            raise ParameterError("mode is invalid and scale_fn is None")
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom = scale_fn
        if scale_fn is None:
            scale_mode = "iterations" if mode == "exp_range" else "cycle"
        self.scale_mode = scale_mode
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.base_momentums, self.max_momentums = self._start_momentum(
                base_momentum, max_momentum, last_epoch
            )
        if last_epoch == -1:
            for lr, group in zip(base_lrs, optimizer.param_groups, strict=True):
                write(group, "lr", lr)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """The height of cycle or step `x`."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom(x)
        if self.mode == "exp_range":
            return self.gamma**x
        return 1 / (2.0 ** (x - 1)) if self.mode == "triangular2" else 1.0

    def get_lr(self) -> list[Any]:
        """Writes the momentum too."""
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle
        up = x <= self.step_ratio
        height = x / self.step_ratio if up else (x - 1) / (self.step_ratio - 1)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.cycle_momentum:
            bounds = zip(self.base_momentums, self.max_momentums, strict=True)
            for group, (low, high) in zip(self.optimizer.param_groups, bounds, strict=True):
                self._write_momentum(group, high - (high - low) * height * scale)
        pairs = zip(self.base_lrs, self.max_lrs, strict=True)
        return [low + (high - low) * height * scale for low, high in pairs]


class OneCycleLR(_Cycling):
    """Up to `max_lr` and down to nearly nothing, once; the momentum the other way.

    Args:
        optimizer: whose groups are changed.
        max_lr: the top, or one for each group.
        total_steps: of the cycle; or give `epochs` and `steps_per_epoch`.
        pct_start: share of the steps that go up.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: whether the momentum moves.
        base_momentum, max_momentum: its bounds, or one for each group.
        div_factor: the first learning rate is `max_lr / div_factor`.
        final_div_factor: the last one is the first divided by this.
        three_phase: go down as long as up, then to the last.
        last_epoch: -1 to start.
    Raises:
        ParameterError: settings out of range, or a step after the last.
        OperandError: `optimizer` is none.
    Source: Smith and Topin, arXiv:1708.07120.
    Example:
        >>> import tracegrad as tg
        >>> optimizer = tg.optim.SGD([tg.ones(1, requires_grad=True)], lr=1.0, momentum=0.9)
        >>> schedule = tg.optim.lr_scheduler.OneCycleLR(
        ...     optimizer, max_lr=2.0, total_steps=10, div_factor=4.0)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr(), optimizer.param_groups[0]["momentum"]
        ([2.0], 0.85)
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: Any, total_steps: int | None = None,
        epochs: int | None = None, steps_per_epoch: int | None = None, pct_start: float = 0.3,
        anneal_strategy: str = "cos", cycle_momentum: bool = True, base_momentum: Any = 0.85,
        max_momentum: Any = 0.95, div_factor: float = 25.0, final_div_factor: float = 1e4,
        three_phase: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.optimizer = need_optimizer(optimizer)
        self.total_steps = _count_steps(total_steps, epochs, steps_per_epoch)
        if pct_start < 0 or pct_start > 1 or not isinstance(pct_start, float):
            raise ParameterError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ParameterError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
            )
        self._schedule_phases = _phases(self.total_steps, pct_start, three_phase)
        self._anneal_func_type = anneal_strategy
        tops = for_groups("max_lr", optimizer, max_lr)
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self._start_momentum(base_momentum, max_momentum, last_epoch)
        if last_epoch == -1:
            for group, top in zip(optimizer.param_groups, tops, strict=True):
                group["initial_lr"] = top / div_factor
                group["max_lr"] = top
                group["min_lr"] = group["initial_lr"] / final_div_factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Writes the momentum too.

        Raises:
            ParameterError: all steps have been made.
        """
        step = self.last_epoch
        if step > self.total_steps:
            raise ParameterError(
                f"Tried to step {step} times. The specified number of total steps is "
                f"{self.total_steps}"
            )
        start = 0.0
        for phase in self._schedule_phases:
            end = phase["end_step"]
            if step <= end or phase is self._schedule_phases[-1]:
                break
            start = end
        share = (step - start) / (end - start)
        if self.cycle_momentum:
            for group in self.optimizer.param_groups:
                self._write_momentum(group, self._between(group, phase, "momentum", share))
        return [self._between(group, phase, "lr", share) for group in self.optimizer.param_groups]

    def _between(
        self, group: dict[str, Any], phase: dict[str, Any], what: str, share: float
    ) -> Any:
        start, end = group[phase[f"start_{what}"]], group[phase[f"end_{what}"]]
        if self._anneal_func_type == "linear":
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)


def _count_steps(total: int | None, epochs: int | None, each: int | None) -> int:
    if total is not None:
        _need_positive("total_steps", total)
        return total
    if epochs is None or each is None:
        raise ParameterError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    _need_positive("epochs", epochs)
    _need_positive("steps_per_epoch", each)
    return epochs * each


def _need_positive(name: str, count: Any) -> None:
    if not isinstance(count, int) or count <= 0:
        raise ParameterError(f"Expected positive integer {name}, but got {count}")


def _phases(steps: int, share: float, three: bool) -> list[dict[str, Any]]:
    """Where each phase ends, and the settings between which it moves."""
    first = float(share * steps) - 1
    rows = [(first, "initial_lr", "max_lr", "max_momentum", "base_momentum")]
    if three:
        second = float(2 * share * steps) - 2
        rows.append((second, "max_lr", "initial_lr", "base_momentum", "max_momentum"))
        rows.append((steps - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum"))
    else:
        rows.append((steps - 1, "max_lr", "min_lr", "base_momentum", "max_momentum"))
    names = ("end_step", "start_lr", "end_lr", "start_momentum", "end_momentum")
    return [dict(zip(names, row, strict=True)) for row in rows]
