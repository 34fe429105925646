"""JAX: `jit` of `value_and_grad`; a call ends when every result is ready."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Prepared, Workload
from benchmarks.workloads.mlp import RATE


def load(mode: str, threads: int) -> Callable[[Workload], Prepared]:
    """XLA has no thread setting on the CPU; it counts the processors this process may use."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    return prepare


def prepare(workload: Workload) -> Prepared:
    """One jitted function per workload."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.special import erf

    ops = SimpleNamespace(
        sin=jnp.sin, exp=jnp.exp, tanh=jnp.tanh, erf=erf, sqrt=jnp.sqrt, log=jnp.log
    )
    inputs = [jnp.asarray(a) for a in workload.inputs()]
    if workload.kind == "mlp":
        return training_step(inputs)
    expression = workload.expression
    assert expression is not None, f"{workload.name} has no expression"
    if workload.kind == "forward":
        return repeated(jax.jit(lambda *args: expression(ops, *args)), inputs)
    keep = workload.kind == "gradient and value"

    def total(*args: Any) -> Any:
        out = expression(ops, *args)
        return out.sum(), (out if keep else ())

    every = tuple(range(len(inputs)))
    return repeated(jax.jit(jax.value_and_grad(total, argnums=every, has_aux=True)), inputs)


def repeated(run: Callable[..., Any], inputs: list[Any]) -> Prepared:
    """The same arguments at every call."""
    import jax

    last: list[Any] = []

    def call() -> None:
        last[:] = [jax.block_until_ready(run(*inputs))]

    return Prepared(call, lambda: arrays(last))


def arrays(tree: Any) -> Arrays:
    """The leaves of a result."""
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def training_step(inputs: list[Any]) -> Prepared:
    """The whole step is one jitted function from weights to weights."""
    import jax
    import jax.numpy as jnp

    x, labels = inputs[:2]

    def loss_of(weights: list[Any]) -> Any:
        w1, b1, w2, b2, w3, b3 = weights
        hidden = jax.nn.relu(x @ w1 + b1)
        hidden = jax.nn.relu(hidden @ w2 + b2)
        likelihood = jax.nn.log_softmax(hidden @ w3 + b3)
        return -jnp.take_along_axis(likelihood, labels[:, None], axis=1).mean()

    @jax.jit
    def step(weights: list[Any]) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(weights)
        return loss, [w - RATE * g for w, g in zip(weights, grads, strict=True)]

    state: list[Any] = [None, list(inputs[2:])]

    def call() -> None:
        state[:] = jax.block_until_ready(step(state[1]))

    return Prepared(call, lambda: arrays(state))
