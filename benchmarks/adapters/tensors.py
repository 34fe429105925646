"""tracegrad and PyTorch, eager and compiled: one text, since one API.

The framework is the module `lib`; `wrap` is its `compile`, or the identity.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import LAYER_NORM_EPS, Arrays, Prepared, Workload

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def load(mode: str, threads: int) -> Callable[[Workload], Prepared]:
    """`mode` is the module's name, then "eager" or "compiled"."""
    name, how = mode.split()
    lib: Any = importlib.import_module(name)
    lib.set_num_threads(threads)
    wrap: Wrap = lib.compile if how == "compiled" else lambda fn: fn

    m = operations(lib)

    def prepare(workload: Workload) -> Prepared:
        inputs, expression = workload.inputs(), workload.expression
        if workload.kind == "training":
            whole = name == "tracegrad" and how == "compiled"
            return training_step(lib, m, wrap, workload, whole)
        if workload.kind == "forward":
            return forward(lib, wrap(lambda *args: expression(m, *args)), inputs)
        if workload.kind == "hessian":
            return forward(lib, wrap(lib.func.hessian(lambda x: expression(m, x).sum())), inputs)
        keep = workload.kind == "gradient and value"
        return gradient(lib, m, wrap, expression, inputs, keep)

    return prepare


def operations(lib: Any) -> SimpleNamespace:
    """The names of `Ops`, as functions of the library; attention is composed where it has none."""
    f = lib.nn.functional

    def attention(q: Any, k: Any, v: Any) -> Any:
        if hasattr(f, "scaled_dot_product_attention"):
            return f.scaled_dot_product_attention(q, k, v, is_causal=True)
        sequence, width = q.shape[-2:]
        scores = q @ k.transpose(-2, -1) * width**-0.5
        later = lib.full((sequence, sequence), float("-inf")).triu(1)
        return lib.softmax(scores + later, -1) @ v

    def causal_attention(qkv: Any, heads: int) -> Any:
        batch, sequence, width = qkv.shape
        parts = qkv.reshape(batch, sequence, 3, heads, width // (3 * heads))
        q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
        mixed = attention(q, k, v)
        return mixed.transpose(1, 2).reshape(batch, sequence, width // 3)

    return SimpleNamespace(
        sin=lib.sin,
        exp=lib.exp,
        tanh=lib.tanh,
        erf=lib.erf,
        sqrt=lib.sqrt,
        log=lib.log,
        mean=lib.mean,
        sum_last=lambda x: x.sum(-1),
        relu=lib.relu,
        gelu=f.gelu,
        softmax=lambda x: lib.softmax(x, -1),
        layer_norm=lambda x, w, b: f.layer_norm(x, x.shape[-1:], w, b, LAYER_NORM_EPS),
        causal_attention=causal_attention,
        cross_entropy=f.cross_entropy,
        conv2d=lambda x, w, b, padding: f.conv2d(x, w, b, padding=padding),
        max_pool2d=lambda x: f.max_pool2d(x, 2),
    )


def array(tensor: Any) -> np.ndarray:
    """A copy of a tensor's elements."""
    return np.array(tensor.detach().numpy())


def forward(lib: Any, run: Callable[..., Any], inputs: Arrays) -> Prepared:
    """The same arguments at every call."""
    args = [lib.tensor(a) for a in inputs]
    last: list[Any] = []

    def call() -> None:
        last[:] = [run(*args)]

    return Prepared(call, lambda: [array(t) for t in last])


def gradient(
    lib: Any,
    m: SimpleNamespace,
    wrap: Wrap,
    expression: Callable[..., Any],
    inputs: Arrays,
    keep: bool,
) -> Prepared:
    """The sum, with `keep` the elements, and every gradient through `backward()`."""
    args = [lib.tensor(a, requires_grad=True) for a in inputs]

    def program(*args: Any) -> Any:
        out = expression(m, *args)
        return (out.sum(), out) if keep else out.sum()

    run = wrap(program)
    last: list[Any] = []

    def call() -> None:
        for a in args:
            a.grad = None
        found = run(*args)
        last[:] = found if keep else (found,)
        last[0].backward()

    return Prepared(call, lambda: [array(t) for t in (*last, *(a.grad for a in args))])


def training_step(
    lib: Any, m: SimpleNamespace, wrap: Wrap, workload: Workload, whole: bool
) -> Prepared:
    """Loss, backward, SGD.

    With `whole` the entire step is one compiled function, the optimizer's part too. Otherwise the
    loss is what is compiled: torch.compile ends its graph at `backward()`, and the optimizer that
    follows is the library's own.
    """
    inputs = [lib.tensor(a) for a in workload.inputs()]
    data, weights = inputs[: workload.data], inputs[workload.data :]
    for w in weights:
        w.requires_grad_()
    optimizer = lib.optim.SGD(weights, lr=workload.rate)

    def loss_of(*args: Any) -> Any:
        return workload.expression(m, *args)

    run = loss_of if whole else wrap(loss_of)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = run(*data, *weights)
        loss.backward()
        optimizer.step()
        return loss.detach()

    call_step = wrap(step) if whole else step
    last: list[Any] = []

    def call() -> None:
        last[:] = [call_step()]

    return Prepared(call, lambda: [array(t) for t in (*last, *weights)])
