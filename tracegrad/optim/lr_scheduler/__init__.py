"""Learning rates that change from step to step, under PyTorch's names.

Start reading at `tracegrad.optim.lr_scheduler.base`; the rules are in `factors` (a factor at each
step), `cosine`, `cycles` (which may move the momentum too), `combined` and `plateau`.
"""

from tracegrad.optim.lr_scheduler.base import LRScheduler
from tracegrad.optim.lr_scheduler.combined import ChainedScheduler, SequentialLR
from tracegrad.optim.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from tracegrad.optim.lr_scheduler.cycles import CyclicLR, OneCycleLR
from tracegrad.optim.lr_scheduler.factors import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from tracegrad.optim.lr_scheduler.plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
    "CyclicLR", "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR",
    "MultiplicativeLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip
