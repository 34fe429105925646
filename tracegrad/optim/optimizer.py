"""`Optimizer`: parameter groups, state per parameter, saving and loading; rules are subclasses.

A rule writes one method, `update`, which changes one parameter in place. Start reading at `step`.

Note [Steps in compiled functions]
In a captured run an optimizer from outside reads its groups and state through the recorder, which
guards them. The settings that a rule lists in `numbers` may reach `update` as tensors then, so that
each replay reads them anew: `lr` always, others once they have changed. `update` must calculate with
them alike in both cases, and test them with `used`. What counts the steps is a tensor; `number`
makes it part of the calculation. The step that makes the state is not replayed.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.nn.loading import clear_gradient
from tracegrad.nn.naming import type_name
from tracegrad.tracer.capture_hook import Followed
from tracegrad.tracer.grad_mode import enable_grad, no_grad
from tracegrad.tracer.profiling import labelled
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

if TYPE_CHECKING:
    from tracegrad.tracer.capture_state import StateReads

_NAMES = "all optimizer {} should be with/without names. "
_DUPLICATES = (
    "optimizer contains a parameter group with duplicate parameters; in future, this will cause "
    "an error; see github.com/pytorch/pytorch/issues/40967 for more information"
)


class Optimizer(Followed):
    """Base class of optimizers.

    Args:
        params: tensors, pairs of a name and a tensor as `named_parameters()` gives them, or dicts
            with "params" and settings of their own (parameter groups).
        defaults: settings of groups that do not give them.
    Attributes:
        param_groups: list of dicts: "params" and the settings, which may be changed at any time,
            and "param_names" where the parameters came with names.
        state: parameter -> what the rule remembers of it.
    Raises:
        OperandError, ParameterError: `params` is no list of leaf tensors (PyTorch's texts).
    Source: PyTorch documentation, `torch.optim.Optimizer`.
    """

    followed = frozenset({"step", "zero_grad"})
    numbers: ClassVar[tuple[str, ...]] = ()  # settings that may change without a new trace

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: dict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self.stepped = False
        if isinstance(params, Tensor):
            raise OperandError(
                "params argument given to the optimizer should be an iterable of Tensors or "
                f"dicts, but got {type_name(params)}"
            )
        _refuse_set(params)
        groups = list(params)
        if not groups:
            raise ParameterError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimize more parameters, with the settings in `param_group` or the defaults.

        Raises:
            OperandError, ParameterError: as the constructor; a parameter is there already; only
                some of the parameters have names.
        """
        if not isinstance(param_group, dict):
            raise OperandError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        _refuse_set(params)
        names, listed = _split([params] if isinstance(params, Tensor) else list(params))
        if names:
            param_group = {**param_group, "param_names": names}
        for p in listed:
            _check_parameter(p)
        if len({id(p) for p in listed}) != len(listed):
            warnings.warn(_DUPLICATES, UserWarning, stacklevel=3)
        named = "param_names" in param_group
        if any(("param_names" in group) != named for group in self.param_groups):
            text = f"cannot add param group {'with' if named else 'without'} names to the optimizer"
            raise ParameterError(_NAMES.format("param groups") + text)
        taken = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in taken for p in listed):
            raise ParameterError("some parameters appear in more than one parameter group")
        self.param_groups.append({**self.defaults, **param_group, "params": listed})

    def update(self, p: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Change the parameter `p` in place; runs without recording.

        Args:
            p: the parameter.
            grad: its gradient, not to be changed.
            state: what the rule remembers of this parameter; empty at first.
            group: the settings.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define update()")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient.

        Args:
            closure: computes the loss again (and its gradients) before the step.
        Returns:
            What `closure` returned, or None.
        """
        with labelled(f"Optimizer.step#{type(self).__name__}.step"):
            return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        self.stepped = True
        reads = None
        if state.recorder is not None:
            reads = state.recorder.follows(self, "Optimizer.step()")
        groups = self.param_groups if reads is None else self._guarded_groups(reads)
        with no_grad():
            for group in groups:
                for p in group["params"]:
                    grad = p.grad
                    if grad is not None:
                        kept = self.state.get(p, {})
                        self.update(p, grad, kept, group)
                        if kept:
                            self.state[p] = kept
        return loss

    def _guarded_groups(self, reads: StateReads) -> Iterator[Mapping[str, Any]]:
        """The groups; all that a step reads of them and of the state is guarded."""
        states = reads.attribute(self, "state", "optimizer.state")
        listed = reads.attribute(self, "param_groups", "optimizer.param_groups")
        for i, group in enumerate(reads.contents(listed, "optimizer.param_groups")):
            name = f"optimizer.param_groups[{i}]"
            listed = f"{name}['params']"
            for k, p in enumerate(reads.contents(reads.entry(group, "params", listed), listed)):
                kept = reads.entry(states, p, f"optimizer.state[{listed}[{k}]]")
                if kept is not None:
                    reads.contents(kept, f"optimizer.state[{listed}[{k}]]")
            yield Settings(reads, group, name, _numbers_of(type(self)))

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set all gradients to zeros, in place; with `set_to_none`, to None."""
        with labelled(f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"):
            for group in self.param_groups:
                for p in group["params"]:
                    clear_gradient(p, set_to_none)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": number of the parameter -> state, "param_groups": settings and numbers}."""
        numbers = self._numbers()
        groups = [
            {**group, "params": [numbers[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        state = {numbers.get(id(p), p): dict(kept) for p, kept in self.state.items()}
        return {"state": state, "param_groups": groups}

    def _numbers(self) -> dict[int, int]:
        numbers: dict[int, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
        return numbers

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over settings and state (copied, cast to the parameters' dtypes).

        Settings that were not saved, by an older version, get their default values. Names that were
        saved replace those of this optimizer; parameters are matched by their places, not by names.

        Raises:
            ParameterError: the groups do not have the sizes of this optimizer's.
        """
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ParameterError("loaded state dict has a different number of parameter groups")
        if any(len(a["params"]) != len(b["params"]) for a, b in zip(saved, self.param_groups)):
            raise ParameterError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                "optimizer's group"
            )
        of_number: dict[Any, Any] = {}
        groups = []
        for old, mine in zip(saved, self.param_groups, strict=True):
            of_number.update(zip(old["params"], mine["params"], strict=True))
            own = {"param_names": mine["param_names"]} if "param_names" in mine else {}
            loaded = copy.deepcopy(dict(old))
            groups.append({**self.defaults, **own, **loaded, "params": mine["params"]})
        state: dict[Any, dict[str, Any]] = defaultdict(dict)
        for number, kept in state_dict["state"].items():
            p = of_number.get(number, number)
            state[p] = {name: _loaded(name, value, p) for name, value in kept.items()}
        self.state, self.param_groups = state, groups

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            text += "".join(
                f"    {key}: {group[key]}\n" for key in sorted(group) if key != "params"
            )
        return text + ")"


class Settings(Mapping[str, Any]):
    """The settings of a group in a captured run: guarded as they are read, or numbers."""

    def __init__(
        self, reads: StateReads, group: dict[str, Any], name: str, numbers: tuple[str, ...]
    ) -> None:
        self._reads, self._group, self._name, self._numbers = reads, group, name, numbers

    def __getitem__(self, key: str) -> Any:
        if key not in self._group:
            raise KeyError(key)
        read = self._reads.setting if key in self._numbers else self._reads.entry
        return read(self._group, key, f"{self._name}[{key!r}]")

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)


def _numbers_of(rule: type[Optimizer]) -> tuple[str, ...]:
    """The `numbers` of the class that defines `update`: another one's may not be meant for it."""
    owner = next(c for c in rule.__mro__ if "update" in vars(c))
    return tuple(vars(owner).get("numbers", ()))


def _refuse_set(params: Any) -> None:
    if isinstance(params, set | frozenset):
        raise OperandError(
            "optimizer parameters need to be organized in ordered collections, but the ordering "
            "of tensors in sets will change between runs. Please use a list instead."
        )
    if not isinstance(params, Iterable):
        raise OperandError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            f"but got {type_name(params)}"
        )


def _split(params: list[Any]) -> tuple[list[Any], list[Any]]:
    """The names, none or one for each, and the parameters of a group."""
    names = [entry[0] for entry in params if isinstance(entry, tuple)]
    if names and len(names) < len(params):
        raise ParameterError(_NAMES.format("params") + "Some param names are missing")
    return names, [entry[1] if isinstance(entry, tuple) else entry for entry in params]


def _check_parameter(p: Any) -> None:
    if not isinstance(p, Tensor):
        raise OperandError(
            f"optimizer can only optimize Tensors, but one of the params is {type_name(p)}"
        )
    if not p.is_leaf:
        raise ParameterError("can't optimize a non-leaf Tensor")


def _loaded(name: str, value: Any, p: Any) -> Any:
    """A copy of one entry of saved state, in the dtype of its parameter (but for the counter)."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach().clone()
    if not isinstance(p, Tensor):
        return value
    keep = name == "step" or not p.dtype.is_floating_point
    return value.to(p.device) if keep else value.to(p.device, p.dtype)


def used(setting: Any) -> bool:
    """Whether a setting is not zero; a tensor that stands for one in a captured run is not."""
    return isinstance(setting, Tensor) or setting != 0


def check(text: str, value: float, good: bool) -> None:
    """Raise PyTorch's `ValueError`, e.g. "Invalid learning rate: -1.0", unless `good`."""
    if not good:
        raise ParameterError(f"Invalid {text}: {value}")
