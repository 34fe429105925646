"""What a call costs beside the work in it, and what compiling costs the calls meanwhile.

Guarded tensors that a compiled function reads from outside; the tutorial's chain of 25 elements
with its backward; a loop whose turns depend on the data; the training step of the tutorial's small
model; and its first fifty steps while a worker compiles. tracegrad, PyTorch (eagerly) and JAX (jitted)
run in processes that take turns, with as many threads. Start reading at `call_times`.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.processes import environment
from benchmarks.startup import BEST, ran

TARGETS = {
    "call, 1 tensor": 3.06e-6, "call, 10 tensors": 3.6e-6, "call, 100 tensors": 9e-6,
    "chain": 5e-6, "doubling loop": 15e-6,
}  # fmt: skip
"""Seconds."""

TITLES = {
    "call, 1 tensor": "call with 1 tensor from outside",
    "call, 10 tensors": "call with 10 tensors from outside",
    "call, 100 tensors": "call with 100 tensors from outside",
    "chain": "sin(a), * 2, + 1, sum of 25; backward",
    "doubling loop": "while norm < 1000: double; ten turns",
    "step": "training step 1000-100-10, batch 16, SGD",
    "fifty": "slowest of the calls 2 to 50 of that step",
    "fifty, compiling": "the same while a worker compiles it",
    "fifty, median": "median of the calls 2 to 50",
    "fifty, compiling, median": "the same while a worker compiles it",
}

COMMON = (
    BEST
    + """
import json
import numpy as np

def check(got, want, tolerance, what):
    error = float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
    assert error < tolerance, f"{what} is off by {error:.1e}"

rng = np.random.default_rng(0)
angles = np.linspace(0, 2 * np.pi, 25)
slopes = 2 * np.cos(angles)
RATE = 0.01
batch, target = rng.random((16, 1000)), rng.random((16, 10))
first = [(rng.random(s) - 0.5) / 16 for s in ((1000, 100), (100,), (100, 10), (10,))]

def steps(count):
    w, b, v, c = (p.copy() for p in first)
    for _ in range(count):
        h = np.maximum(batch @ w + b, 0)
        ct = 2 * (h @ v + c - target) / target.size
        back = ct @ v.T * (h > 0)
        w, b = w - RATE * batch.T @ back, b - RATE * back.sum(0)
        v, c = v - RATE * h.T @ ct, c - RATE * ct.sum(0)
    return w, b, v, c

found = {}
"""
)

TENSORS = """
import {name} as lib
OURS = {name!r} == "tracegrad"
compiled = (lambda f: lib.compile(f, wait=True)) if OURS else (lambda f: f)
cast = lambda x: lib.from_numpy(x.astype(np.float32))

if OURS:
    for count in (1, 10, 100):
        held = [lib.full((4,), float(i)) for i in range(count)]
        names = [f"w{{i}}" for i in range(count)]
        space = dict(zip(names, held))
        text = "def f(x):\\n    return x + " + " + ".join(names)
        exec(compile(text, "call.py", "exec"), space)
        f, x = lib.compile(space["f"], wait=True), lib.ones(4)
        f(x)
        check(f(x).numpy(), 1 + sum(range(count)) + np.zeros(4), 1e-6, "the sum")
        found[f"call, {{count}} tensor" + "s" * (count > 1)] = best(lambda: f(x), 500)
        assert f.cache_info().traces == 1 and not f.cache_info().eager_calls

a = cast(angles).requires_grad_()
chain = compiled(lambda a: (2 * lib.sin(a) + 1).sum())

def with_backward():
    a.grad = None
    chain(a).backward()

for _ in range(3):
    with_backward()
check(a.grad.numpy(), slopes, 1e-6, "the slope")
found["chain"] = best(with_backward, 200)

def doubled(x):
    y = x * 2
    while y.norm() < 1000:
        y = y * 2
    return y

loop, x = compiled(doubled), cast(np.full(3, 0.3))
for _ in range(3):
    y = loop(x)
check(y.numpy(), 0.3 * 2.0**11 + np.zeros(3), 1e-6, "the loop")
found["doubling loop"] = best(lambda: loop(x), 100)

def training(wait):
    layers = lib.nn.Linear(1000, 100), lib.nn.Linear(100, 10)
    model = lib.nn.Sequential(layers[0], lib.nn.ReLU(), layers[1])
    with lib.no_grad():
        for p, value in zip(model.parameters(), first):
            p.copy_(cast(value.T))
    optimizer = lib.optim.SGD(model.parameters(), lr=RATE)
    x, t = cast(batch), cast(target)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = (model(x) - t).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return (step if wait is None else lib.compile(step, wait=wait)), model

step, model = training(True if OURS else None)
for _ in range(10):
    step()
for p, want in zip(model.parameters(), steps(10)):
    check(p.detach().numpy().T, want, 1e-4, "a parameter")
found["step"] = best(step, 50)
if OURS:
    for wait, entry in ((None, "fifty"), (False, "fifty, compiling")):
        step, model = training(wait)
        times = []
        for _ in range(50):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        found[entry], found[entry + ", median"] = max(times[1:]), float(np.median(times[1:]))
        for p, want in zip(model.parameters(), steps(50)):
            check(p.detach().numpy().T, want, 1e-4, "a parameter")
print(json.dumps(found))
"""

JAX = """
import jax, jax.numpy as jnp

a = jnp.asarray(angles, jnp.float32)
chain = jax.jit(jax.value_and_grad(lambda a: (2 * jnp.sin(a) + 1).sum()))
check(chain(a)[1], slopes, 1e-6, "the slope")
found["chain"] = best(lambda: jax.block_until_ready(chain(a)), 200)

@jax.jit
def doubled(x):
    return jax.lax.while_loop(lambda y: jnp.linalg.norm(y) < 1000, lambda y: y * 2, x * 2)

x = jnp.full(3, 0.3, jnp.float32)
check(doubled(x), 0.3 * 2.0**11 + np.zeros(3), 1e-6, "the loop")
found["doubling loop"] = best(lambda: jax.block_until_ready(doubled(x)), 100)

def loss(parameters):
    w, b, v, c = parameters
    return jnp.mean((jnp.maximum(x @ w + b, 0) @ v + c - t) ** 2)

@jax.jit
def step(parameters):
    value, slopes = jax.value_and_grad(loss)(parameters)
    return value, [p - RATE * g for p, g in zip(parameters, slopes)]

x, t = jnp.asarray(batch, jnp.float32), jnp.asarray(target, jnp.float32)
parameters = [jnp.asarray(p, jnp.float32) for p in first]

def one():
    global parameters
    _, parameters = jax.block_until_ready(step(parameters))

for _ in range(10):
    one()
for p, want in zip(parameters, steps(10)):
    check(p, want, 1e-4, "a parameter")
found["step"] = best(one, 50)
print(json.dumps(found))
"""


def call_times(rounds: int, threads: int) -> dict[str, dict[str, dict[str, float]]]:
    """Least and median seconds per entry for tracegrad, and for PyTorch and JAX where installed.

    Args:
        rounds: processes per library, in turn; each contributes its least times.
        threads: for every library.
    Raises:
        RuntimeError: a library failed or was wrong.
    """
    programs = {"tracegrad": TENSORS, "torch": TENSORS, "jax": JAX}
    names = [n for n in programs if importlib.util.find_spec(n) is not None]
    times: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(rounds):
        for name in names:
            program = COMMON + (JAX if name == "jax" else TENSORS.format(name=name))
            with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as folder:
                found = json.loads(ran(program, environment(threads, Path(folder))))
            for entry, seconds in found.items():
                times[name].setdefault(entry, []).append(seconds)
    return {
        name: {
            entry: {"median": statistics.median(t), "minimum": min(t)}
            for entry, t in times[name].items()
        }
        for name in names
    }
