"""`LRScheduler`: counts epochs and writes what a rule computes. Start reading at `step`.

Most rules go on from the learning rate that they find, so that several may be combined. Some have
a closed form too, which is used where the epoch is given.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.ir.location import user_stacklevel
from tracegrad.optim.optimizer import Optimizer
from tracegrad.tracer.capture_hook import Followed, recording
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

_ORDER = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`. In PyTorch 1.1.0 and later, "
    "you should call them in the opposite order: `optimizer.step()` before `lr_scheduler.step()`.  "
    "Failure to do this will result in PyTorch skipping the first value of the learning rate "
    "schedule. See more details at "
    "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
)
EPOCH_GIVEN = (
    "The epoch parameter in `scheduler.step()` was not necessary and is being deprecated where "
    "possible. Please use `scheduler.step()` to step the scheduler. During the deprecation, if "
    "epoch is different from None, the closed form is used instead of the new chainable form, "
    "where available. Please open an issue if you are unable to replicate your use case: "
    "https://github.com/pytorch/pytorch/issues/new/choose."
)


def postponed(method: Callable[..., None]) -> Callable[..., None]:
    """Make `step` of a schedule a part of captured runs: a replay takes it after all else.

    It computes no tensors, and what an optimizer reads of its groups is read before.
    """

    @functools.wraps(method)
    def step(self: Any, *args: Any, **kwargs: Any) -> None:
        if state.recorder is not None:
            reads = state.recorder.follows(self.optimizer, "LRScheduler.step()")
            if reads is not None:
                call = functools.partial(method, self, *args, **kwargs)
                reads.postpone(self, call, [self, *self.optimizer.param_groups])
        with recording(None):
            method(self, *args, **kwargs)

    return step


class LRScheduler(Followed):
    """Base class: `get_lr` gives the learning rate of every group for `last_epoch`.

    Args:
        optimizer: whose groups are changed.
        last_epoch: -1 to start; else the epoch after which to go on, with "initial_lr" in the
            groups.
    Raises:
        OperandError: `optimizer` is none.
        KeyError: "initial_lr" is missing.
    Source: PyTorch documentation, `torch.optim.lr_scheduler.LRScheduler`.
    """

    followed = frozenset({"step"})
    _functions: tuple[str, ...] = ()  # attributes that hold functions, see `state_dict`

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = need_optimizer(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", _copied(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    "scheduler with last_epoch >= 0.\nThis typically happens when:\n1. You're "
                    "trying to resume training from a checkpoint but haven't properly loaded the "
                    "optimizer state\n2. You're using last_epoch >= 0 for a fresh training run "
                    "(not recommended)"
                )
        self.base_lrs = rates(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        self._initial_step()

    def _initial_step(self) -> None:
        """Write the first learning rate; `_is_initial` meanwhile."""
        self._step_count = 0
        self._is_initial = True
        self.step()
        self._is_initial = False

    def get_lr(self) -> list[Any]:
        """The learning rate of every group in epoch `last_epoch`."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_lr()")

    def closed_form(self) -> list[Any]:
        """The same from `last_epoch` alone, where a rule can."""
        return self.get_lr()

    def get_last_lr(self) -> list[Any]:
        """The learning rates written last."""
        return self._last_lr

    @postponed
    def step(self, epoch: int | None = None) -> None:
        """Go on to the next epoch, or (deprecated, with a warning) to `epoch`."""
        if self._step_count == 1 and not self.optimizer.stepped:
            warnings.warn(_ORDER, UserWarning, stacklevel=user_stacklevel())
        self._step_count += 1
        if epoch is not None:
            warnings.warn(EPOCH_GIVEN, UserWarning, stacklevel=user_stacklevel())
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch is None:
            self.last_epoch += 1
            self._write(self.get_lr())
        else:
            self.last_epoch = epoch
            self._write(self.closed_form())

    def _write(self, values: Sequence[Any]) -> None:
        for group, lr in zip(self.optimizer.param_groups, values, strict=True):
            write(group, "lr", lr)
        self._last_lr = rates(self.optimizer)

    def _current(self) -> list[Any]:
        return rates(self.optimizer)

    def _times(self, factor: float) -> list[Any]:
        return [lr * factor for lr in self._current()]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer; of functions None, of other callables their attributes."""
        state = {k: v for k, v in self.__dict__.items() if k != "optimizer"}
        for name in self._functions:
            kept = state[name]
            state[name] = [_saved(f) for f in kept] if isinstance(kept, list) else _saved(kept)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned."""
        rest = {k: v for k, v in state_dict.items() if k not in self._functions}
        for name in self._functions:
            mine, theirs = getattr(self, name), state_dict[name]
            pairs = zip(mine, theirs) if isinstance(mine, list) else [(mine, theirs)]
            for function, attributes in pairs:
                if attributes is not None:
                    function.__dict__.update(attributes)
        self.__dict__.update(rest)


def need_optimizer(optimizer: Any) -> Any:
    """`optimizer`, or PyTorch's error where it is none."""
    if not isinstance(optimizer, Optimizer):
        raise OperandError(f"{type(optimizer).__name__} is not an Optimizer")
    return optimizer


def rates(optimizer: Any, key: str = "lr") -> list[Any]:
    """One setting of every group; tensors are copied."""
    return [_copied(group[key]) for group in optimizer.param_groups]


def write(group: dict[str, Any], key: str, value: Any) -> None:
    """Set one setting; a tensor there stays the same object."""
    if isinstance(group[key], Tensor):
        group[key].fill_(float(value))
    else:
        group[key] = value


def for_groups(name: str, optimizer: Any, value: Any) -> list[Any]:
    """One value for each group, of one or of a list with as many.

    Raises:
        ParameterError: the list has another length.
    """
    count = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        return [_copied(value) for _ in range(count)]
    if len(value) != count:
        raise ParameterError(
            f"{name} must have the same length as optimizer.param_groups. {name} has {len(value)} "
            f"values, param_groups has {count}."
        )
    return [_copied(v) for v in value]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _saved(function: Callable[..., Any] | None) -> dict[str, Any] | None:
    if function is None or isinstance(function, types.FunctionType):
        return None
    return dict(getattr(function, "__dict__", {}))
