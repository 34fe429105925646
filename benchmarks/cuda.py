"""The same work on one GPU by tracegrad, PyTorch (eager and compiled) and JAX.

    python -m benchmarks.cuda [--json FILE] [--small]

A time is the median of several rounds; a round is many calls one after another and one wait at the
end, divided by their number, so it holds launches and kernels as a training loop sees them. Results are
compared with float64 first, on random data; libraries take turns within a round. Bytes are those that
must move: each input read once, each output written once. Start reading at `main`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tracegrad as tg
from tracegrad.runtime.cuda import driver

ROUNDS = 7
Call = Callable[[], Any]


@dataclass
class Work:
    """One row: the libraries' calls, what must move, and what the results should be.

    Attributes:
        calls: by library, a function without arguments that does the work once.
        result: by library, a few numbers that the work computes, as a float64 array.
        nbytes: that the forward and the backward must move at least; 0: not said.
    """

    name: str
    calls: dict[str, Call] = field(default_factory=dict)
    results: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    want: np.ndarray | None = None
    tolerance: float = 1e-4
    nbytes: int = 0


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _jax() -> Any:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others need memory too
    try:
        import jax
    except ImportError:
        return None
    return jax if any(d.platform == "gpu" for d in jax.devices()) else None


# ---- pointwise work and rows, with gradients ----------------------------------------------------


def wave(lib: Any, x: Any) -> Any:
    """`sin(x) * exp(-x * x) + tanh(x)`, summed."""
    return (lib.sin(x) * lib.exp(-x * x) + lib.tanh(x)).sum()


def black_scholes(lib: Any, s: Any, k: Any, t: Any, r: Any, v: Any) -> Any:
    """Prices of calls, summed; with the gradients come the greeks."""
    deviation = v * lib.sqrt(t)
    d1 = (lib.log(s / k) + (r + 0.5 * v * v) * t) / deviation
    d2 = d1 - deviation

    def normal(x: Any) -> Any:
        erf = lib.erf if hasattr(lib, "erf") else lib.erf_
        return 0.5 * (1.0 + erf(x / math.sqrt(2.0)))

    return (s * normal(d1) - k * lib.exp(-r * t) * normal(d2)).sum()


def norm_softmax_dot(lib: Any, x: Any, w: Any, b: Any, y: Any) -> Any:
    """Layer norm, softmax, dot product with `y`, of rows."""
    mean = x.mean(1, keepdims=True)
    centred = x - mean
    var = (centred * centred).mean(1, keepdims=True)
    z = centred / lib.sqrt(var + 1e-5) * w + b
    e = lib.exp(z - lib.amax(z, 1, keepdims=True))
    return (e / e.sum(1, keepdims=True) * y).sum()


def _numpy_names(jax: Any) -> Any:
    """`jax.numpy` with the names that the functions above use."""

    class Names:
        def __getattr__(self, name: str) -> Any:
            if name == "erf":
                return jax.scipy.special.erf
            return getattr(jax.numpy, name)

    return Names()


def differentiated(
    name: str, function: Any, arrays: list[np.ndarray], wrt: int, nbytes: int
) -> Work:
    """A scalar function and its gradients by the first `wrt` arguments."""
    work = Work(name, nbytes=nbytes)
    torch, jax = _torch(), _jax()
    here = [tg.tensor(a, device="cuda") for a in arrays]
    for x in here[:wrt]:
        x.requires_grad_()
    compiled = tg.compile(lambda *xs: function(tg, *xs), wait=True)

    def ours() -> Any:
        for x in here[:wrt]:
            x.grad = None
        compiled(*here).backward()

    work.calls["tracegrad"] = ours
    work.results["tracegrad"] = lambda: _sample([x.grad.cpu().numpy() for x in here[:wrt]])
    if torch is not None:
        there = [
            torch.tensor(a, device="cuda", requires_grad=i < wrt) for i, a in enumerate(arrays)
        ]
        wide = [x.detach().double().requires_grad_(i < wrt) for i, x in enumerate(there)]
        function(torch, *wide).backward()
        work.want = _sample([x.grad.cpu().numpy() for x in wide[:wrt]])
        del wide

        def run(f: Any) -> Call:
            def call() -> Any:
                for x in there[:wrt]:
                    x.grad = None
                f(*there).backward()

            return call

        grads = lambda: _sample([x.grad.cpu().numpy() for x in there[:wrt]])  # noqa: E731
        work.calls["torch"] = run(lambda *xs: function(torch, *xs))
        work.calls["torch.compile"] = run(torch.compile(lambda *xs: function(torch, *xs)))
        work.results["torch"] = work.results["torch.compile"] = grads
    if jax is not None:
        names = _numpy_names(jax)
        given = [jax.numpy.asarray(a) for a in arrays]
        pulled = jax.jit(jax.value_and_grad(lambda *xs: function(names, *xs), tuple(range(wrt))))
        held: list[Any] = [None]

        def call() -> Any:
            held[0] = pulled(*given)
            return held[0]

        work.calls["jax"] = call
        work.results["jax"] = lambda: _sample([np.asarray(g) for g in held[0][1]])
    return work


def computed(name: str, function: Any, array: np.ndarray, nbytes: int) -> Work:
    """A function of one array, without gradients."""
    work = Work(name, nbytes=nbytes, tolerance=1e-5)
    torch, jax = _torch(), _jax()
    x = tg.tensor(array, device="cuda")
    f = tg.compile(lambda x: function(tg, x), wait=True)
    work.calls["tracegrad"] = lambda: f(x)
    work.results["tracegrad"] = lambda: _sample([f(x).cpu().numpy()])
    if torch is not None:
        y = torch.tensor(array, device="cuda")
        work.want = _sample([function(torch, y.double()).cpu().numpy()])
        g = torch.compile(lambda y: function(torch, y))
        work.calls["torch"], work.calls["torch.compile"] = lambda: function(torch, y), lambda: g(y)
        work.results["torch.compile"] = lambda: _sample([g(y).cpu().numpy()])
    if jax is not None:
        names, z = _numpy_names(jax), jax.numpy.asarray(array)
        h = jax.jit(lambda z: function(names, z))
        work.calls["jax"] = lambda: h(z)
    return work


def softmax(lib: Any, x: Any) -> Any:
    """Of rows."""
    e = lib.exp(x - lib.amax(x, 1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _sample(arrays: list[np.ndarray]) -> np.ndarray:
    """Some elements of arrays, spread over all of them."""
    return np.concatenate(
        [a.reshape(-1)[:: max(1, a.size // 997)].astype(np.float64) for a in arrays]
    )


# ---- training steps -----------------------------------------------------------------------------


def mlp(lib: Any) -> Any:
    """784-512-512-10."""
    nn = lib.nn
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def gpt_block(lib: Any, width: int = 256, heads: int = 4) -> Any:
    """Layer norm, causal attention, layer norm, MLP with GELU, each with a residual."""
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any, mask: Any) -> Any:
            b, t, c = x.shape
            q, k, v = self.qkv(self.norm1(x)).split(c, 2)
            q, k, v = (a.view(b, t, heads, c // heads).transpose(1, 2) for a in (q, k, v))
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(c // heads))
            weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
            x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, c))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    return Block()


def training(name: str, build: Any, inputs: Any, loss: Any) -> Work:
    """Forward, backward and a step of SGD; PyTorch starts from the same weights."""
    work = Work(name, tolerance=2e-3)
    tg.manual_seed(0)  # type: ignore[attr-defined]
    model = build(tg).to("cuda")
    start = [p.detach().cpu().numpy() for p in model.parameters()]
    here = [tg.tensor(a, device="cuda") for a in inputs]
    optimizer = tg.optim.SGD(model.parameters(), lr=0.01)

    def step(*xs: Any) -> Any:
        optimizer.zero_grad()
        value = loss(tg, model, *xs)
        value.backward()
        optimizer.step()
        return value

    compiled = tg.compile(step, wait=True)
    work.calls["tracegrad"] = lambda: compiled(*here)
    work.results["tracegrad"] = lambda: _sample(
        [p.detach().cpu().numpy() for p in model.parameters()]
    )
    torch = _torch()
    if torch is None:
        return work
    for library in ("torch float64", "torch", "torch.compile"):
        kind = torch.float64 if library == "torch float64" else torch.float32
        theirs = build(torch).to("cuda", kind)
        with torch.no_grad():
            for p, a in zip(theirs.parameters(), start, strict=True):
                p.copy_(torch.tensor(a))
        there = [torch.tensor(a, device="cuda") for a in inputs]
        there = [x.to(kind) if x.is_floating_point() else x for x in there]
        sgd = torch.optim.SGD(theirs.parameters(), lr=0.01)
        forward = torch.compile(theirs) if library == "torch.compile" else theirs

        def run(forward: Any = forward, sgd: Any = sgd, there: Any = there) -> Any:
            sgd.zero_grad()
            value = loss(torch, forward, *there)
            value.backward()
            sgd.step()

        def read(theirs: Any = theirs) -> np.ndarray:
            return _sample([p.detach().cpu().numpy() for p in theirs.parameters()])

        if library == "torch float64":
            for _ in range(CHECKED):
                run()
            work.want = read()
        else:
            work.calls[library], work.results[library] = run, read
    return work


CHECKED = 3  # calls before the results are compared


# ---- all rows -----------------------------------------------------------------------------------


def rows(small: bool) -> dict[str, Callable[[str], Work]]:
    """The workloads by name, each made when its turn comes."""
    rng = np.random.default_rng(0)
    n = 1 << (16 if small else 26)
    lines = 512 if small else 65536

    def draw(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    def options() -> list[np.ndarray]:
        return [
            draw(80, 120, n),
            draw(80, 120, n),
            draw(0.2, 2, n),
            draw(0.01, 0.05, n),
            draw(0.1, 0.5, n),
        ]

    def chain() -> list[np.ndarray]:
        x, y = draw(-2, 2, lines, 1024), draw(-1, 1, lines, 1024)
        return [x, draw(0.5, 1.5, 1024), draw(-1, 1, 1024), y]

    def images() -> list[np.ndarray]:
        return [draw(-1, 1, 256, 784), rng.integers(0, 10, 256)]

    def words() -> list[np.ndarray]:
        return [draw(-1, 1, 8, 128, 256), np.triu(np.ones((128, 128), bool), 1)]

    return {
        "2 * x + 1, 64 M": lambda name: computed(
            name, lambda lib, x: 2 * x + 1, draw(-1, 1, n), 8 * n
        ),
        "softmax, 65536 x 1024": lambda name: computed(
            name, softmax, draw(-5, 5, lines, 1024), 8192 * lines
        ),
        "sin*exp + tanh, 64 M": lambda name: differentiated(
            name, wave, [draw(-2, 2, n)], 1, 12 * n
        ),
        "Black-Scholes and greeks, 64 M": lambda name: differentiated(
            name, black_scholes, options(), 5, 60 * n
        ),
        "layer norm, softmax, dot, 65536 x 1024": lambda name: differentiated(
            name, norm_softmax_dot, chain(), 3, 20 * lines * 1024
        ),
        "MLP 784-512-512-10, batch 256, SGD": lambda name: training(
            name, mlp, images(), lambda lib, m, x, t: lib.nn.functional.cross_entropy(m(x), t)
        ),
        "GPT block, 8 x 128 x 256, SGD": lambda name: training(
            name, gpt_block, words(), lambda lib, m, x, mask: (m(x, mask) ** 2).mean()
        ),
        "one compiled call, 1024 elements": _launch_cost,
    }


def _launch_cost(name: str) -> Work:
    """One compiled call of one small kernel."""
    work = Work(name)
    f = tg.compile(lambda x: x * 2 + 1, wait=True)
    x = tg.randn(1024, device="cuda")
    work.calls["tracegrad"] = lambda: f(x)
    torch = _torch()
    if torch is not None:
        y = torch.randn(1024, device="cuda")
        g = torch.compile(lambda x: x * 2 + 1)
        work.calls["torch"], work.calls["torch.compile"] = lambda: y * 2 + 1, lambda: g(y)
    jax = _jax()
    if jax is not None:
        z = jax.numpy.ones(1024)
        h = jax.jit(lambda x: x * 2 + 1)
        work.calls["jax"] = lambda: h(z)
    return work


# ---- measuring ----------------------------------------------------------------------------------


def wait(library: str, result: Any) -> None:
    """Wait until the device has done all that the library asked for."""
    if library == "jax":
        _jax().block_until_ready(result)
    elif library == "tracegrad":
        driver.synchronize(0)
    else:
        _torch().cuda.synchronize()


def checked(work: Work) -> dict[str, float]:
    """Run each library a few times and compare: the largest relative error, by library."""
    errors = {}
    for library, call in work.calls.items():
        result = None
        for _ in range(CHECKED):
            result = call()
        wait(library, result)
        if library in work.results and work.want is not None:
            got = work.results[library]()
            error = float(np.linalg.norm(got - work.want) / np.linalg.norm(work.want))
            errors[library] = error
            assert error < work.tolerance, f"{work.name}: {library} is off by {error:.1e}"
    return errors


def timed(work: Work) -> dict[str, dict[str, float]]:
    """Median and minimum of rounds, in seconds a call."""
    counts = {}
    for library, call in work.calls.items():
        start = time.perf_counter()
        wait(library, call())
        counts[library] = max(5, min(500, int(0.05 / max(time.perf_counter() - start, 1e-6))))
    seconds: dict[str, list[float]] = {library: [] for library in work.calls}
    for _ in range(ROUNDS):
        for library, call in work.calls.items():
            start = time.perf_counter()
            for _ in range(counts[library]):
                result = call()
            wait(library, result)
            seconds[library].append((time.perf_counter() - start) / counts[library])
    return {
        library: {"median": statistics.median(s), "minimum": min(s)}
        for library, s in seconds.items()
    }


def copy_bandwidth(small: bool) -> float:
    """Bytes read and written a second by a copy within the device."""
    count = 1 << (22 if small else 28)
    x = tg.randn(count, device="cuda")
    y = tg.empty(count, device="cuda")
    for _ in range(3):
        y.copy_(x)
    driver.synchronize(0)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            y.copy_(x)
        driver.synchronize(0)
        best = min(best, (time.perf_counter() - start) / 10)
    return 8 * count / best


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the program")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    bandwidth = copy_bandwidth(options.small)
    print(f"{driver.name(0)}; a copy moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    table: dict[str, Any] = {"device": driver.name(0), "copy bytes/s": bandwidth, "rows": {}}
    for name, make in rows(options.small).items():
        if options.only not in name:
            continue
        try:
            work = make(name)
            errors = checked(work)
            found = timed(work)
        except Exception as error:  # the other rows are worth having; this one says what it was
            print(f"{name:44} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        table["rows"][work.name] = {"times": found, "errors": errors, "bytes": work.nbytes}
        ours = found["tracegrad"]["median"]
        share = f", {work.nbytes / ours / bandwidth:.0%} of a copy" if work.nbytes else ""
        print(f"{work.name:44} {ours * 1e6:9.1f} us{share}", flush=True)
        for library, times in found.items():
            if library != "tracegrad":
                ratio = times["median"] / ours
                print(
                    f"    {library:40} {times['median'] * 1e6:9.1f} us, {ratio:.2f} x", flush=True
                )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
