"""JAX: `jit` of `value_and_grad`; a call ends when every result is ready."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import LAYER_NORM_EPS, Arrays, Prepared, Workload


def load(mode: str, threads: int) -> Callable[[Workload], Prepared]:
    """XLA has no thread setting on the CPU; it counts the processors this process may use."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    return prepare


def operations() -> SimpleNamespace:
    """The names of `Ops`; what XLA has no function for is composed, as JAX's libraries do."""
    import jax
    import jax.numpy as jnp

    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        centered = x - x.mean(-1, keepdims=True)
        variance = (centered * centered).mean(-1, keepdims=True)
        return centered * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * weight + bias

    def causal_attention(qkv: Any, heads: int) -> Any:
        batch, sequence, width = qkv.shape
        parts = qkv.reshape(batch, sequence, 3, heads, width // (3 * heads))
        q, k, v = (parts[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return mixed.reshape(batch, sequence, width // 3)

    def cross_entropy(logits: Any, labels: Any) -> Any:
        likelihood = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(likelihood, labels[:, None], axis=1).mean()

    def conv2d(x: Any, weight: Any, bias: Any, padding: int) -> Any:
        edges = [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, weight, (1, 1), edges) + bias[:, None, None]

    def max_pool2d(x: Any) -> Any:
        window = (1, 1, 2, 2)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    return SimpleNamespace(
        sin=jnp.sin,
        exp=jnp.exp,
        tanh=jnp.tanh,
        erf=jax.scipy.special.erf,
        sqrt=jnp.sqrt,
        log=jnp.log,
        mean=jnp.mean,
        sum_last=lambda x: x.sum(-1),
        relu=jax.nn.relu,
        gelu=lambda x: jax.nn.gelu(x, approximate=False),
        softmax=jax.nn.softmax,
        layer_norm=layer_norm,
        causal_attention=causal_attention,
        cross_entropy=cross_entropy,
        conv2d=conv2d,
        max_pool2d=max_pool2d,
    )


def prepare(workload: Workload) -> Prepared:
    """One jitted function per workload."""
    import jax
    import jax.numpy as jnp

    ops, expression = operations(), workload.expression
    inputs = [jnp.asarray(a) for a in workload.inputs()]
    if workload.kind == "training":
        return training_step(ops, workload, inputs)
    if workload.kind == "hessian":
        return repeated(jax.jit(jax.hessian(lambda x: expression(ops, x).sum())), inputs)
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


def training_step(ops: SimpleNamespace, workload: Workload, inputs: list[Any]) -> Prepared:
    """The whole step is one jitted function from weights to weights."""
    import jax

    data = inputs[: workload.data]

    @jax.jit
    def step(weights: list[Any]) -> Any:
        loss, grads = jax.value_and_grad(lambda w: workload.expression(ops, *data, *w))(weights)
        return loss, [w - workload.rate * g for w, g in zip(weights, grads, strict=True)]

    state: list[Any] = [None, inputs[workload.data :]]

    def call() -> None:
        state[:] = jax.block_until_ready(step(state[1]))

    return Prepared(call, lambda: arrays(state))
