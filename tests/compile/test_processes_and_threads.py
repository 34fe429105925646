"""A second process compiles nothing; threads share a compiled function; eager by environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.runtime import threads

PROGRAM = """
import sys, time
import tracegrad as tg

def f(x):
    return (tg.sin(x) * tg.exp(-x * x) + tg.tanh(x)).sum()

x = tg.randn(1000, requires_grad=True)
g = tg.compile(f)
start = time.perf_counter()
y = g(x)
first = time.perf_counter() - start
g(x).backward()
print(sorted({r.cache for r in tg.kernel_history()}), "jinja2" in sys.modules, g.cache_info(), first)
"""


def run(**environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_compiles_nothing(new_process: None) -> None:
    assert run().startswith("['built'] True")
    warm = run()
    assert warm.startswith("['disk'] False"), warm


WARM = """
import sys
import tracegrad as tg

def f(x, w):
    return tg.softmax(tg.tanh(x @ w), -1)[:, 0].sum()

x, w = tg.randn(100, 8, requires_grad=True), tg.randn(8, 4)
g = tg.compile(f)
g(x, w)
print({r.cache for r in tg.kernel_history()}, [m for m in HEAVY if m in sys.modules])
g(x, w).backward()
print({r.cache for r in tg.kernel_history()}, [m for m in HEAVY if m in sys.modules])
"""


def test_the_first_calls_of_a_second_process_load_no_heavy_module(new_process: None) -> None:
    program = f"HEAVY = ('jinja2', 'pycparser', 'scipy')\n{WARM}"
    said = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines())
    cold, warm = said
    assert cold == ["{'built'} ['jinja2']"] * 2
    assert warm == ["{'disk'} []"] * 2


def test_the_environment_turns_compilation_off() -> None:
    out = run(TRACEGRAD_EAGER="1")
    assert out.startswith("[] False CacheInfo(hits=0, misses=0, traces=0, eager_calls=0)"), out


def test_python_threads_call_one_function_with_different_shapes() -> None:
    def fn(x: Any) -> Any:
        return (tg.sin(x) * x).sum()

    f = tg.compile(fn)
    faults: list[Any] = []

    def work(n: int) -> None:
        try:
            for k in range(30):
                x = tg.full((n % 4 + 2,), float(k), dtype=tg.float64).requires_grad_()
                y = f(x)
                y.backward()
                want = np.sin(float(k)) * k * (n % 4 + 2)
                assert abs(y.item() - want) <= 1e-12 * max(1.0, abs(want))
                np.testing.assert_allclose(
                    x.grad.numpy(), np.sin(float(k)) + k * np.cos(float(k)), rtol=1e-12
                )
        except BaseException as error:
            faults.append(error)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not faults, faults[0]
    assert f.cache_info().traces == 4
    assert f.cache_info().misses == 4


def test_threads_at_once_in_one_kernel_do_not_meet() -> None:
    def fn(x: Any) -> Any:
        return ((x - x.mean(1, keepdim=True)).exp().sum(1) * x.sum(1)).sum()

    f = tg.compile(fn)
    inputs = [tg.randn(64, 257, dtype=tg.float64) for _ in range(4)]
    wanted = [f(x).item() for x in inputs]
    wanted = [f(x).item() for x in inputs]
    faults: list[Any] = []

    def work(k: int) -> None:
        for _ in range(50):
            if f(inputs[k]).item() != wanted[k]:
                faults.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not faults


@pytest.mark.parametrize("count", [2, 7])
def test_any_number_of_threads_gives_the_same_bits(count: int) -> None:
    def fn(x: Any, w: Any) -> Any:
        h = tg.tanh(x @ w)
        s = tg.softmax(h * 3, -1)
        return (s * h).sum(), (h * h).sum(0), tg.cumsum(s.sum(1), 0) if hasattr(tg, "cumsum") else s

    x = tg.randn(2000, 96, requires_grad=True)
    w = tg.randn(96, 300, requires_grad=True)
    f = tg.compile(fn)
    f(x, w)
    before = threads.get_num_threads()
    results = []
    try:
        for n in (1, count):
            threads.set_num_threads(n)
            outs = f(x, w)
            grads = tg.autograd.grad(outs[0] + outs[1].sum(), (x, w))
            results.append([t.detach().numpy().tobytes() for t in (*outs, *grads)])
    finally:
        threads.set_num_threads(before)
    assert results[0] == results[1]
