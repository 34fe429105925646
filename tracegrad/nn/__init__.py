"""Modules, losses and initial values under PyTorch's names. Start at `tracegrad.nn.module`."""

from tracegrad.nn import functional, init, utils
from tracegrad.nn.containers import ModuleList, Sequential
from tracegrad.nn.convolution import AvgPool2d, Conv1d, Conv2d, Conv3d, MaxPool2d
from tracegrad.nn.layers import (
    GELU,
    Dropout,
    Flatten,
    Identity,
    LayerNorm,
    Linear,
    LogSoftmax,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)
from tracegrad.nn.losses import CrossEntropyLoss, L1Loss, MSELoss, NLLLoss
from tracegrad.nn.module import Module
from tracegrad.nn.parameter import Parameter

__all__ = [
    "AvgPool2d", "Conv1d", "Conv2d", "Conv3d", "CrossEntropyLoss", "Dropout", "Flatten", "GELU",
    "Identity", "L1Loss", "LayerNorm", "Linear", "LogSoftmax", "MSELoss", "MaxPool2d", "Module",
    "ModuleList", "NLLLoss", "Parameter", "ReLU", "Sequential", "Sigmoid", "Softmax", "Tanh",
    "functional", "init", "utils",
]  # fmt: skip
