"""tracegrad and PyTorch, eager and compiled: one text, since one API.

The framework is the module `lib`; `wrap` is its `compile`, or the identity.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Prepared, Workload
from benchmarks.workloads.mlp import RATE

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def load(mode: str, threads: int) -> Callable[[Workload], Prepared]:
    """`mode` is the module's name, then "eager" or "compiled"."""
    name, how = mode.split()
    lib: Any = importlib.import_module(name)
    lib.set_num_threads(threads)
    wrap: Wrap = lib.compile if how == "compiled" else lambda fn: fn

    def prepare(workload: Workload) -> Prepared:
        inputs = workload.inputs()
        if workload.kind == "mlp":
            return training_step(lib, wrap, inputs, whole=name == "tracegrad")
        assert workload.expression is not None, f"{workload.name} has no expression"
        if workload.kind == "forward":
            return forward(lib, wrap, workload.expression, inputs)
        keep = workload.kind == "gradient and value"
        return gradient(lib, wrap, workload.expression, inputs, keep)

    return prepare


def array(tensor: Any) -> np.ndarray:
    """A copy of a tensor's elements."""
    return np.array(tensor.detach().numpy())


def forward(lib: Any, wrap: Wrap, expression: Callable[..., Any], inputs: Arrays) -> Prepared:
    """The expression alone."""
    args = [lib.tensor(a) for a in inputs]
    run = wrap(lambda *args: expression(lib, *args))
    last: list[Any] = []

    def call() -> None:
        last[:] = [run(*args)]

    return Prepared(call, lambda: [array(t) for t in last])


def gradient(
    lib: Any, wrap: Wrap, expression: Callable[..., Any], inputs: Arrays, keep: bool
) -> Prepared:
    """The sum, with `keep` the elements, and every gradient through `backward()`."""
    args = [lib.tensor(a, requires_grad=True) for a in inputs]

    def program(*args: Any) -> Any:
        out = expression(lib, *args)
        return (out.sum(), out) if keep else (out.sum(),)

    run = wrap(program)
    last: list[Any] = []

    def call() -> None:
        for a in args:
            a.grad = None
        last[:] = run(*args)
        last[0].backward()

    return Prepared(call, lambda: [array(t) for t in (*last, *(a.grad for a in args))])


def training_step(lib: Any, wrap: Wrap, inputs: Arrays, whole: bool) -> Prepared:
    """Loss, backward, SGD by the library's own optimizer.

    Args:
        whole: compile the step; else the loss and its backward, and the optimizer is eager, which is
            what PyTorch does with an optimizer inside of a compiled function, too.
    """
    x, labels = lib.tensor(inputs[0]), lib.tensor(inputs[1])
    weights = [lib.tensor(a, requires_grad=True) for a in inputs[2:]]
    criterion = lib.nn.CrossEntropyLoss()
    optimizer = lib.optim.SGD(weights, lr=RATE)

    def loss_of(x: Any, labels: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any) -> Any:
        hidden = lib.relu(x @ w1 + b1)
        hidden = lib.relu(hidden @ w2 + b2)
        return criterion(hidden @ w3 + b3, labels)

    run = loss_of if whole else wrap(loss_of)

    def step() -> Any:
        optimizer.zero_grad()
        loss = run(x, labels, *weights)
        loss.backward()
        optimizer.step()
        return loss.detach()

    one = wrap(step) if whole else step
    last: list[Any] = []

    def call() -> None:
        last[:] = [one()]

    return Prepared(call, lambda: [array(t) for t in (*last, *weights)])
