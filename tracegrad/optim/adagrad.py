"""Adagrad: steps scaled by the sum of all squares so far. Start reading at `Adagrad.update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracegrad.optim.optimizer import Optimizer, check, used
from tracegrad.optim.settings import check_lr, implementation
from tracegrad.tracer.capture_state import number
from tracegrad.tracer.factories import full_like, zeros


class Adagrad(Optimizer):
    """Gradients divided by the root of the sum of their squares so far:

        s = s + g^2;    p = p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)

    The state of all parameters is there from the start.

    Args:
        params: tensors or parameter groups.
        lr: step size.
        lr_decay: how fast the step size falls with the number t of the step.
        weight_decay: g is the gradient plus this times p.
        initial_accumulator_value: s before the first step.
        eps: added to the root.
        foreach, fused: accepted, without effect.
        maximize: go up instead of down.
        differentiable: only False.
    Raises:
        ParameterError: a setting is out of range (PyTorch's texts).
        OptionError: `fused` together with `foreach` or `differentiable`.
        UnsupportedError: `differentiable` is set.
    Source: Duchi, Hazan and Singer, JMLR 12 (2011), 2121-2159.
    Example:
        >>> import tracegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.Adagrad([w], lr=0.5)
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.5000], requires_grad=True)
    """

    numbers = ("lr", "lr_decay", "weight_decay")

    def __init__(
        self, params: Any, lr: float = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check("lr_decay value", lr_decay, lr_decay >= 0.0)
        check("weight_decay value", weight_decay, weight_decay >= 0.0)
        start = initial_accumulator_value
        check("initial_accumulator_value value", start, start >= 0.0)
        check("epsilon value", eps, eps >= 0.0)
        chosen = implementation(
            "Adagrad", foreach=foreach, differentiable=differentiable, fused=fused
        )
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": start, "maximize": maximize, **chosen,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self._start(p, self.state[p])

    def _start(self, p: Any, state: dict[str, Any]) -> None:
        state["step"] = zeros((), device=p.device)
        state["sum"] = full_like(p, self.defaults["initial_accumulator_value"])

    def update(self, p: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """One step for one parameter."""
        lr, lr_decay, weight_decay = group["lr"], group["lr_decay"], group["weight_decay"]
        if not state:
            self._start(p, state)
        state["step"].add_(1)
        if group["maximize"]:
            grad = -grad
        if used(weight_decay):
            grad = grad.add(p, alpha=weight_decay)
        if used(lr_decay):
            lr = lr / (1 + (number(state["step"]) - 1) * lr_decay)
        root = state["sum"].addcmul_(grad, grad, value=1).sqrt().add_(group["eps"])
        p.addcdiv_(grad, root, value=-lr)
