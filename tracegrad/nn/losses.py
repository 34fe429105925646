"""Losses as modules; the mathematics is in `tracegrad.nn.costs`. Start at `CrossEntropyLoss`."""

from __future__ import annotations

from typing import Any

from tracegrad.nn import functional as F
from tracegrad.nn.costs import check_retired
from tracegrad.nn.module import Module


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction


class MSELoss(_Loss):
    """Squared differences; see `nn.functional.mse_loss`."""

    def forward(self, input: Any, target: Any) -> Any:
        """Reduced over all elements."""
        return F.mse_loss(input, target, self.reduction)


class L1Loss(_Loss):
    """Absolute differences; see `nn.functional.l1_loss`."""

    def forward(self, input: Any, target: Any) -> Any:
        """Reduced over all elements."""
        return F.l1_loss(input, target, self.reduction)


class _WeightedLoss(_Loss):
    weight: Any

    def __init__(self, weight: Any, ignore_index: int, reduction: str) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index


class NLLLoss(_WeightedLoss):
    """Negative log-likelihood of classes; see `nn.functional.nll_loss`."""

    def __init__(
        self, weight: Any = None, size_average: None = None, ignore_index: int = -100,
        reduce: None = None, reduction: str = "mean",
    ) -> None:  # fmt: skip
        check_retired(size_average, reduce)
        super().__init__(weight, ignore_index, reduction)

    def forward(self, input: Any, target: Any) -> Any:
        """Reduced over all targets."""
        return F.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class CrossEntropyLoss(_WeightedLoss):
    """Cross entropy of a softmax; see `nn.functional.cross_entropy`.

    Example:
        >>> import tracegrad as tg
        >>> tg.nn.CrossEntropyLoss()(tg.zeros(1, 4), tg.tensor([2]))
        tensor(1.3863)
    """

    def __init__(
        self, weight: Any = None, size_average: None = None, ignore_index: int = -100,
        reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        check_retired(size_average, reduce)
        super().__init__(weight, ignore_index, reduction)
        self.label_smoothing = label_smoothing

    def forward(self, input: Any, target: Any) -> Any:
        """Reduced over all targets."""
        return F.cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
