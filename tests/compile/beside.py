"""A compiled function beside the plain one: same calls, same results, same gradients.

Start reading at `assert_same`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tracegrad as tg
from tracegrad.ir import dtypes
from tracegrad.runtime import cache, folder, history, kernels, toolchain
from tracegrad.tracer import verification
from tracegrad.tracer.pytree import flatten

ULPS = 64  # libm on vectors, and sums taken in another order


def twin(x: Any) -> Any:
    """A copy of an argument: tensors with memory, layout and `requires_grad` of their own."""
    if isinstance(x, tg.Tensor):
        base = np.zeros(_span(x._array), x._array.dtype)
        view = np.lib.stride_tricks.as_strided(base, x._array.shape, [abs(s) for s in
                                                                     x._array.strides])  # fmt: skip
        view[...] = x._array
        made = tg.from_numpy(view)
        return made.requires_grad_(x.requires_grad) if x.dtype.is_floating_point else made
    if isinstance(x, list | tuple):
        return type(x)(twin(y) for y in x)
    if isinstance(x, dict):
        return {k: twin(y) for k, y in x.items()}
    return x


def _span(a: np.ndarray) -> int:
    return 1 + sum(abs(s) // a.itemsize * (n - 1) for s, n in zip(a.strides, a.shape) if n)


def tensors(tree: Any) -> list[Any]:
    """The tensors among the leaves."""
    leaves: list[Any] = []
    flatten(tree, leaves)
    return [x for x in leaves if isinstance(x, tg.Tensor)]


def assert_equal(got: Any, want: Any, what: str = "result") -> None:
    """Equal in structure, types, dtypes, requires_grad; values within `ULPS` on their scale."""
    a: list[Any] = []
    b: list[Any] = []
    assert flatten(got, a) == flatten(want, b), (what, got, want)
    for x, y in zip(a, b, strict=True):
        if not isinstance(y, tg.Tensor):
            assert type(x) is type(y), (what, x, y)
            assert repr(x) == repr(y), (what, x, y)
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype), what
        assert x.requires_grad is y.requires_grad, what
        assert x.is_leaf is y.is_leaf, what
        close(x._array, y._array, what)


def close(x: np.ndarray, y: np.ndarray, what: str) -> None:
    if y.dtype.kind in "biu":
        np.testing.assert_array_equal(x, y, err_msg=what)
        return
    scale = float(np.max(np.abs(y), initial=0.0, where=np.isfinite(y)))
    eps = verification.epsilon(dtypes.from_numpy(y.dtype))
    x, y = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(x, y, rtol=0, atol=ULPS * eps * scale, err_msg=what)


def gradients(outputs: Any, arguments: Any) -> list[Any]:
    """`.grad` of the arguments after the outputs were differentiated with fixed cotangents."""
    roots = [t for t in tensors(outputs) if t.requires_grad]
    rng = np.random.default_rng(3)
    cts = [tg.from_numpy(np.asarray(rng.normal(size=tuple(t.shape))).astype(t._array.dtype))
           for t in roots]  # fmt: skip
    if roots:
        tg.autograd.backward(roots, cts)
    return [t.grad for t in tensors(arguments)]


def assert_same(
    plain: Callable[..., Any], *calls: tuple[Any, ...], compiled: Any = None, times: int = 2,
    traces: int | None = None,
) -> Any:  # fmt: skip
    """Call both `times` times with twins of each tuple of arguments; compare all.

    Args:
        compiled: made from `plain` unless given.
        traces: how many traces it must have in the end.
    Returns:
        The compiled function.
    """
    compiled = tg.compile(plain) if compiled is None else compiled
    for _ in range(times):
        for arguments in calls:
            ours, theirs = twin(arguments), twin(arguments)
            state = tg.get_rng_state()
            want = plain(*theirs)
            tg.set_rng_state(state)
            got = compiled(*ours)
            assert_equal(got, want)
            for a, b in zip(gradients(got, ours), gradients(want, theirs), strict=True):
                assert (a is None) == (b is None), "gradient"
                if b is not None:
                    close(a._array, b._array, "gradient")
    if traces is not None:
        info = compiled.cache_info()
        assert info.traces == traces, compiled.explain()
        assert info.eager_calls == 0, compiled.explain()
    return compiled


def fresh() -> None:
    """Forget everything that a new process would not know."""
    kernels.unload_all()
    toolchain.forget()
    folder.forget_stores()
    folder.forget_warnings()
    history.clear_history()
    cache.forget()
