"""RMSprop: steps scaled by a running mean of squares. Start reading at `RMSprop.update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracegrad.optim.optimizer import Optimizer, check, used
from tracegrad.optim.settings import check_lr, implementation
from tracegrad.tracer.factories import zeros, zeros_like


class RMSprop(Optimizer):
    """Gradients divided by the root of the running mean of their squares:

        v = alpha v + (1 - alpha) g^2;    d = g / (sqrt(v) + eps)
        p = p - lr d            (momentum > 0: b = momentum b + d;  p = p - lr b)

    Args:
        params: tensors or parameter groups.
        lr: step size.
        alpha: decay of the means.
        eps: added to the root.
        weight_decay: g is the gradient plus this times p.
        momentum: decay of b.
        centered: divide by the root of v minus the square of the running mean of g.
        maximize: go up instead of down.
        capturable, foreach: accepted, without effect.
        differentiable: only False.
    Raises:
        ParameterError: a setting is out of range (PyTorch's texts).
        UnsupportedError: `differentiable` is set.
    Source: Hinton, Coursera lecture 6e (2012); centered: Graves, arXiv:1308.0850.
    Example:
        >>> import tracegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.RMSprop([w], lr=0.05)
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.5000], requires_grad=True)
    """

    numbers = ("lr", "momentum", "weight_decay")

    def __init__(
        self, params: Any, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0, momentum: float = 0, centered: bool = False,
        capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check("epsilon value", eps, eps >= 0.0)
        check("momentum value", momentum, momentum >= 0.0)
        check("weight_decay value", weight_decay, weight_decay >= 0.0)
        check("alpha value", alpha, alpha >= 0.0)
        chosen = implementation(
            "RMSprop", capturable=capturable, foreach=foreach, differentiable=differentiable
        )
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "maximize": maximize, **chosen,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update(self, p: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """One step for one parameter."""
        lr, alpha, momentum = group["lr"], group["alpha"], group["momentum"]
        centered, weight_decay = group["centered"], group["weight_decay"]
        if not state:
            state["step"] = zeros((), device=p.device)
            state["square_avg"] = zeros_like(p)
            if used(momentum):
                state["momentum_buffer"] = zeros_like(p)
            if centered:
                state["grad_avg"] = zeros_like(p)
        state["step"].add_(1)
        if group["maximize"]:
            grad = -grad
        if used(weight_decay):
            grad = grad.add(p, alpha=weight_decay)
        square = state["square_avg"].mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        if centered:
            mean = state["grad_avg"].lerp_(grad, 1 - alpha)
            square = square.addcmul(mean, mean, value=-1)
        root = square.sqrt().add_(group["eps"])
        if used(momentum):
            p.add_(state["momentum_buffer"].mul_(momentum).addcdiv_(grad, root), alpha=-lr)
        else:
            p.addcdiv_(grad, root, value=-lr)
