"""Schedules made of schedules. Start reading at `SequentialLR`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.optim.lr_scheduler.base import LRScheduler, postponed, rates, write
from tracegrad.optim.lr_scheduler.plateau import ReduceLROnPlateau
from tracegrad.optim.optimizer import Optimizer


class _Combined(LRScheduler):
    """State of several schedules of one optimizer."""

    _schedulers: Sequence[Any]

    def _check(self, schedulers: Sequence[Any], what: str, optimizer: Any) -> Any:
        """The optimizer of all of them."""
        name = type(self).__name__
        if len(schedulers) < 1:
            raise ParameterError(f"{name} expects at least one scheduler{what}")
        optimizer = optimizer or schedulers[0].optimizer
        for i, scheduler in enumerate(schedulers):
            if not hasattr(scheduler, "optimizer"):
                raise OperandError(f"{name} at index {i} should have `optimizer` as its attribute.")
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ParameterError(
                    f"{name} does not support `ReduceLROnPlateau` scheduler as it requires "
                    "additional kwargs to be specified when calling `step`, but got one at index "
                    f"{i} in the given schedulers sequence."
                )
            if scheduler.optimizer is not optimizer:
                raise ParameterError(
                    f"{name} expects all schedulers to belong to the same optimizer, but got "
                    f"scheduler {type(scheduler).__name__} at index {i} has "
                    f"{scheduler.optimizer}, which is different from {type(optimizer).__name__}."
                )
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer; of the schedules their own state."""
        state = {k: v for k, v in self.__dict__.items() if k != "optimizer"}
        return {**state, "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned."""
        self.__dict__.update({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for mine, theirs in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            mine.load_state_dict(theirs)


class SequentialLR(_Combined):
    """One schedule after another: the next one starts at each of the epochs `milestones`.

    Raises:
        ParameterError: no schedule, a `ReduceLROnPlateau`, different optimizers, or the number of
            milestones is not one less than that of schedules.
    Example:
        >>> import tracegrad as tg
        >>> from tracegrad.optim import lr_scheduler
        >>> optimizer = tg.optim.SGD([tg.ones(1, requires_grad=True)], lr=1.0)
        >>> warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> decay = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        >>> schedule = lr_scheduler.SequentialLR(optimizer, [warm_up, decay], milestones=[2])
        >>> seen = []
        >>> for _ in range(4):
        ...     seen.append(schedule.get_last_lr()[0])
        ...     optimizer.step()
        ...     schedule.step()
        >>> seen
        [0.5, 0.75, 1.0, 0.5]
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int],
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self._check(schedulers, ", but got no scheduler.", optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise ParameterError(
                "Sequential Schedulers expects number of schedulers provided to be one more than "
                "the number of milestone points, but got number of schedulers "
                f"{len(schedulers)} and the number of milestones to be equal to {len(milestones)}"
            )
        self._schedulers = schedulers
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            write(group, "lr", group["initial_lr"])
        _undo(self)  # the first steps, which all schedules took when they were made
        first = schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    @postponed
    def step(self) -> None:
        """Go on to the next epoch."""
        self.last_epoch += 1
        i = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[i]
        if i > 0 and self._milestones[i - 1] == self.last_epoch:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()


def _undo(scheduler: Any) -> None:
    if hasattr(scheduler, "_schedulers"):
        for part in scheduler._schedulers:
            _undo(part)
    elif hasattr(scheduler, "last_epoch"):
        scheduler.last_epoch -= 1


class ChainedScheduler(_Combined):
    """Several schedules at once: each goes on from what the one before has written.

    Raises:
        ParameterError: no schedule, a `ReduceLROnPlateau`, or different optimizers.
    """

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        self.optimizer = self._check(schedulers, " to be chained, but got no scheduler.", optimizer)
        self._schedulers = schedulers
        self._last_lr = rates(self.optimizer)

    @postponed
    def step(self) -> None:
        """Let every schedule go on to the next epoch."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = rates(self.optimizer)
