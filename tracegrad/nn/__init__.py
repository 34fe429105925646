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
from tracegrad.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
)
from tracegrad.nn.parameter import Parameter

__all__ = [
    "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Conv1d", "Conv2d", "Conv3d",
    "CrossEntropyLoss", "Dropout", "Flatten", "GELU", "GroupNorm", "Identity", "InstanceNorm1d",
    "InstanceNorm2d", "InstanceNorm3d", "L1Loss", "LayerNorm", "Linear", "LogSoftmax", "MSELoss",
    "MaxPool2d", "Module", "ModuleList", "NLLLoss", "Parameter", "ReLU", "Sequential", "Sigmoid",
    "Softmax", "Tanh", "functional", "init", "utils",
]  # fmt: skip
