"""Stochastic gradient descent with momentum. Start reading at `SGD.update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracegrad.ir.errors import ParameterError
from tracegrad.optim.optimizer import Optimizer, check, used
from tracegrad.optim.settings import check_lr, implementation


class SGD(Optimizer):
    """Gradient descent: with g the gradient plus `weight_decay` times p,

        b = g at the first step, then momentum * b + (1 - dampening) * g
        p = p - lr * b         (nesterov: p - lr * (g + momentum * b);  momentum 0: p - lr * g)

    Args:
        params: tensors or parameter groups.
        lr, momentum, dampening, weight_decay: numbers, none negative.
        nesterov: needs momentum and no dampening.
        maximize: go up instead of down.
        foreach, fused: accepted, without effect.
        differentiable: only False.
    Raises:
        ParameterError: a setting is out of range (PyTorch's texts).
        OptionError: `fused` together with `foreach` or `differentiable`.
        UnsupportedError: `differentiable` is set.
    Source: Sutskever et al., ICML 2013; PyTorch documentation, `torch.optim.SGD`.
    Example:
        >>> import tracegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.SGD([w], lr=0.5)
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.], requires_grad=True)
    """

    numbers = ("lr", "momentum", "dampening", "weight_decay")

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0, dampening: float = 0,
        weight_decay: float = 0, nesterov: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check("momentum value", momentum, momentum >= 0.0)
        check("weight_decay value", weight_decay, weight_decay >= 0.0)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ParameterError("Nesterov momentum requires a momentum and zero dampening")
        chosen = implementation("SGD", foreach=foreach, differentiable=differentiable, fused=fused)
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, **chosen,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update(self, p: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """One step for one parameter."""
        if group["maximize"]:
            grad = -grad
        weight_decay, momentum = group["weight_decay"], group["momentum"]
        if used(weight_decay):
            grad = grad.add(p, alpha=weight_decay)
        if used(momentum):
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = grad.detach().clone()
            else:
                buffer.mul_(momentum).add_(grad, alpha=1 - group["dampening"])
            grad = grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        p.add_(grad, alpha=-group["lr"])
