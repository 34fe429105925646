"""Adam and AdamW. Start reading at `Adam.update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracegrad.optim.optimizer import Optimizer, check, used
from tracegrad.optim.settings import check_lr, implementation
from tracegrad.tracer.capture_state import number
from tracegrad.tracer.factories import zeros, zeros_like
from tracegrad.tracer.pointwise import apply2
from tracegrad.tracer.tensor import Tensor


class Adam(Optimizer):
    """Steps scaled by running means of the gradient and of its square:

        m = beta1 m + (1 - beta1) g;    v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    Args:
        params: tensors or parameter groups.
        lr: step size.
        betas: (beta1, beta2), each in [0, 1).
        eps: added to the denominator.
        weight_decay: g is the gradient plus this times p.
        amsgrad: use the largest v seen so far.
        maximize: go up instead of down.
        decoupled_weight_decay: as `AdamW`.
        foreach, capturable, fused: accepted, without effect.
        differentiable: only False.
    Raises:
        ParameterError: a setting is out of range (PyTorch's texts).
        OptionError: `fused` together with `foreach` or `differentiable`.
        UnsupportedError: `differentiable` is set.
    Source: Kingma and Ba, arXiv:1412.6980; Reddi, Kale and Kumar, arXiv:1904.09237 (amsgrad).
    Example:
        >>> import tracegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.Adam([w], lr=0.25)
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.7500], requires_grad=True)
    """

    numbers = ("lr", "betas", "weight_decay")

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check("epsilon value", eps, eps >= 0.0)
        for i, beta in enumerate(betas):
            check(f"beta parameter at index {i}", beta, 0.0 <= beta < 1.0)
        check("weight_decay value", weight_decay, weight_decay >= 0.0)
        chosen = implementation(
            type(self).__name__, foreach=foreach, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize, **chosen,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update(self, p: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """One step for one parameter."""
        if not state:
            state["step"] = zeros((), device=p.device)
            state["exp_avg"] = zeros_like(p)
            state["exp_avg_sq"] = zeros_like(p)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = zeros_like(p)
        state["step"].add_(1)
        step = number(state["step"])
        if group["maximize"]:
            grad = -grad
        lr, (beta1, beta2), weight_decay = group["lr"], group["betas"], group["weight_decay"]
        if used(weight_decay):
            if group["decoupled_weight_decay"]:
                p.mul_(1 - lr * weight_decay)
            else:
                grad = grad.add(p, alpha=weight_decay)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        weight = 1 - beta1
        mean.lerp_(grad, weight.to(p.dtype) if isinstance(weight, Tensor) else weight)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            square = largest.copy_(apply2("maximum", largest, square))
        scale = (1 - beta2**step) ** 0.5
        p.addcdiv_(mean, (square.sqrt() / scale).add_(group["eps"]), value=-lr / (1 - beta1**step))


class AdamW(Adam):
    """Adam whose weight decay is `p = p - lr * weight_decay * p`, apart from the gradient.

    Args:
        params, lr, betas, eps, amsgrad, and the keywords: as for `Adam`.
        weight_decay: 0.01 by default.
    Raises:
        ParameterError, OptionError, UnsupportedError: as for `Adam`.
    Source: Loshchilov and Hutter, arXiv:1711.05101.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, amsgrad: bool = False, *,
        maximize: bool = False, foreach: bool | None = None, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=True,
        )  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `Optimizer.load_state_dict`; the rule stays this one, also with the state of `Adam`."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
