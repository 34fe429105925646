"""What eager mode costs: one operation forward and backward, large arrays, and memory of a chain.

Small operations are timed per call on 10 elements, with graph recording, and so is what NumPy takes
for the same arithmetic: the difference is the overhead. Further the backward per node of a chain;
`sin` on a million elements beside NumPy's; and the resident peak of a chain of 50 layers. tracegrad
and PyTorch run in processes of their own that take turns. Start reading at `eager_times`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
from typing import Any

from benchmarks.startup import BEST, ran

TARGETS = {"forward": 3e-6, "backward": 5e-6, "large": 1.2}
"""Seconds above NumPy's own call per small operation, seconds per node, and times NumPy's time."""

PROBE = (
    BEST
    + """
import json, sys
import numpy as np
import {name} as lib
lib.set_num_threads(1)

rng = np.random.default_rng(0)
a, b = (lib.from_numpy(rng.random(10, np.float32)).requires_grad_() for _ in range(2))
m = lib.from_numpy(rng.random((3, 3), np.float32)).requires_grad_()
held = [x * 1 for x in (a, b, m)]  # keeps the leaves' places in the graph, as a model does
operations = {{
    "sin(a)": lambda: lib.sin(a), "a * b": lambda: a * b, "2 * a": lambda: 2 * a,
    "a.sum()": lambda: a.sum(), "m @ m": lambda: m @ m, "a[2:5]": lambda: a[2:5],
    "a.reshape(2, 5)": lambda: a.reshape(2, 5), "relu(a)": lambda: lib.relu(a),
}}
arrays = a.detach().numpy(), b.detach().numpy(), m.detach().numpy(), np.float32(2)
plain = {{
    "sin(a)": lambda p, q, m, two: np.sin(p), "a * b": lambda p, q, m, two: p * q,
    "2 * a": lambda p, q, m, two: two * p, "a.sum()": lambda p, q, m, two: np.add.reduce(p),
    "m @ m": lambda p, q, m, two: m @ m, "a[2:5]": lambda p, q, m, two: p[2:5],
    "a.reshape(2, 5)": lambda p, q, m, two: p.reshape(2, 5),
    "relu(a)": lambda p, q, m, two: np.maximum(p, 0),
}}
found = {{name: best(call, 500) for name, call in operations.items()}}
numpy = {{name: best(lambda: call(*arrays), 500) for name, call in plain.items()}}

def chain(nodes):
    x = a
    for _ in range(nodes):
        x = x.sin()
    return x.sum()

def with_backward():
    a.grad = None
    chain(50).backward()

forward, both = best(lambda: chain(50), 10), best(with_backward, 10)
value, slope = a.detach().numpy().astype(np.float64), 1.0
for _ in range(50):
    value, slope = np.sin(value), slope * np.cos(value)
assert abs(a.grad.numpy() - slope).max() < 1e-5 * abs(slope).max(), "a wrong gradient"
found["backward of sin, per node"] = (both - forward) / 51
large = rng.random(10**6, np.float32)
x = lib.from_numpy(large)
found["sin, 10**6 elements, no gradient"] = best(lambda: lib.sin(x), 3)
numpy["sin, 10**6 elements, no gradient"] = best(lambda: np.sin(large), 3)
print(json.dumps([found, numpy]))
"""
)

MEMORY = """
import json, resource
import numpy as np
import {name} as lib

def status(field):
    lines = open("/proc/self/status").readlines()
    return next(int(n.split()[1]) * 1024 for n in lines if n.startswith(field))

lib.set_num_threads(1)
x = lib.from_numpy(np.ones((1000, 1000), np.float32)).requires_grad_()
weight = lib.from_numpy(np.full((1000, 1000), 1e-3, np.float32)).requires_grad_()
(lib.tanh(x[:2] @ weight) * 0.5 + x[:2]).sum().backward()
x.grad = weight.grad = None
open("/proc/self/clear_refs", "w").write("5")
before, y = status("VmRSS"), x
for _ in range(50):
    y = lib.tanh(y @ weight) * 0.5 + y
y.sum().backward()
print(json.dumps(status("VmHWM") - before))
"""


def eager_times(rounds: int) -> dict[str, Any]:
    """Least and median seconds per entry for tracegrad, PyTorch where it is installed, and NumPy.

    Args:
        rounds: processes per library, in turn; each contributes its least times.
    """
    names = [n for n in ("tracegrad", "torch") if importlib.util.find_spec(n) is not None]
    times: dict[str, dict[str, list[float]]] = {name: {} for name in (*names, "numpy")}
    peaks: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            own, numpy = json.loads(ran(PROBE.format(name=name), dict(os.environ)))
            for whose, found in ((name, own), ("numpy", numpy)):
                for entry, seconds in found.items():
                    times[whose].setdefault(entry, []).append(seconds)
            if os.path.exists("/proc/self/clear_refs"):
                peaks[name].append(float(ran(MEMORY.format(name=name), dict(os.environ))))
    return {
        name: {
            "seconds": {
                entry: {"median": statistics.median(t), "minimum": min(t)}
                for entry, t in times[name].items()
            },
            "peak of 50 layers": statistics.median(peaks[name]) if peaks.get(name) else None,
        }
        for name in times
    }
