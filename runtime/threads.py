"""How many threads kernels use: one count per process.

A kernel with parallel loops exports `void tg_init_threads(const int *count)`; after loading it is
handed the address of the one cell held here and writes `num_threads(*count)` at its loops. So a
change reaches every kernel at its next launch, from any Python thread, and no setting of the
process's OpenMP library is touched (`omp_set_num_threads` would reach the calling thread alone).

Note [Waiting threads]
GCC's OpenMP lets idle threads spin for milliseconds, beside which any other pool (NumPy's OpenBLAS)
crawls: measured on 2 cores, an OpenMP loop of 25 us alternating with a NumPy product of 1.2 ms took
8.6 ms a pair, and 1.3 ms with `OMP_WAIT_POLICY=passive`. Alone in a quiet process spinning is the
faster choice (13 us against 32 to 68 us for that loop). So `prepare_environment` asks for passive
waiting unless the user has set `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT`; set `OMP_WAIT_POLICY=active`
where nothing else runs.

Note [Fork]
The threads of a pool do not survive `fork`, and GCC's OpenMP then waits for them for ever. A child
process therefore runs kernels on one thread (one thread starts no pool).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.ir.location import user_stacklevel
from tracegrad.runtime._abi import ffi

_cell: Any = ffi.new("int *")
_forked = False


def default_num_threads() -> int:
    """`$TRACEGRAD_NUM_THREADS`, else `$OMP_NUM_THREADS`, else the processors we may run on."""
    for name in ("TRACEGRAD_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise ParameterError(f"{name} must be a whole number of at least 1; got {text!r}")
            return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """The most threads a kernel uses."""
    if not _cell[0]:
        _cell[0] = default_num_threads()
    return int(_cell[0])


def set_num_threads(count: int) -> None:
    """Let kernels use at most `count` threads, from their next launch on.

    Results do not depend on it: loops are cut into fixed blocks that are combined in order.

    Raises:
        OperandError: `count` is not an int.
        ParameterError: `count` is below 1.

    Example:
        >>> before = get_num_threads()
        >>> set_num_threads(1); get_num_threads()
        1
        >>> set_num_threads(before)
    """
    if not isinstance(count, int) or isinstance(count, bool):
        raise OperandError(f"set_num_threads expects an int, but got {type(count).__name__}")
    if not 1 <= count <= 0x7FFFFFFF:
        raise ParameterError(f"set_num_threads expects a positive integer; got {count}")
    if _forked and count > 1:
        warnings.warn(
            f"set_num_threads({count}) has no effect in a forked process: its OpenMP threads "
            "stayed in the parent. Start it with multiprocessing's 'spawn'. [fork-threads]",
            RuntimeWarning,
            stacklevel=user_stacklevel(),
        )
        return
    _cell[0] = count


def cell() -> Any:
    """The `int *` that kernels read their thread count from; lives as long as the process."""
    get_num_threads()
    return _cell


@contextmanager
def prepare_environment(**settings: str) -> Iterator[None]:
    """Set variables that a library reads once, while it loads, and take them back afterwards.

    A variable that the user has set is left alone; child processes do not inherit ours.
    """
    ours = {name: text for name, text in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def openmp_settings() -> dict[str, str]:
    """What GCC's OpenMP is to find in the environment. See Note [Waiting threads]."""
    return {} if "GOMP_SPINCOUNT" in os.environ else {"OMP_WAIT_POLICY": "passive"}


def _after_fork() -> None:
    global _forked
    _forked = True
    _cell[0] = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
