"""Optimizers under PyTorch's names. Start reading at `tracegrad.optim.optimizer`."""

from tracegrad.optim import lr_scheduler
from tracegrad.optim.adam import Adam, AdamW
from tracegrad.optim.optimizer import Optimizer
from tracegrad.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "lr_scheduler"]
