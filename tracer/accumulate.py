"""Adding a gradient to `.grad`. Start reading at `accumulate`."""

from __future__ import annotations

import threading

import numpy as np

from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import announce, before_write
from tracegrad.tracer.tensor import Tensor, wrap

_LOCKS = tuple(threading.RLock() for _ in range(16))  # a leaf has one of them, by its address


def _laid_out(ct: Tensor, leaf: Tensor, fresh: bool) -> Tensor:
    """The first gradient of a leaf: memory of its own, in the leaf's layout where that is dense."""
    array, like = ct._array, leaf._array
    if state.recorder is not None:
        return ct.detach().clone()
    if array.strides == like.strides or (like.flags.c_contiguous and array.flags.c_contiguous):
        return wrap(array) if fresh else ct.detach().clone()
    dense = like.size == 0 or (like.strides and 0 not in like.strides)
    made = np.empty_like(like, order="K" if dense else "C")
    if made.strides != like.strides:  # gaps: row by row
        made = np.empty_like(like, order="C")
    made[...] = array
    return wrap(made)


def accumulate(leaf: Tensor, ct: Tensor, create_graph: bool, *, fresh: bool) -> None:
    """Add `ct` to `leaf.grad`: in place, unless the sum itself is to be differentiable.

    Backwards of several threads may add to one leaf: no update is lost.
    """
    if ct.dtype is not leaf.dtype:
        ct = ct.to(leaf.dtype)
    if state.recorder is not None:
        state.recorder.grad_read(leaf)
    lock = _LOCKS[id(leaf) >> 6 & 15]
    if create_graph:
        added = False
        while not added:  # the sum is made outside the lock: it may call the user's pack hooks
            have = leaf._grad
            total = ct if have is None else have + ct
            with lock:
                added = leaf._grad is have
                if added:
                    leaf._grad = total
        return
    with lock:
        have = leaf._grad
        if have is None:
            leaf._grad = _laid_out(ct, leaf, fresh)
        elif state.recorder is not None:
            have.add_(ct)
        else:
            if before_write:
                announce(have._storage)
            token = QUIET.set(IGNORE)
            np.add(have._array, ct._array, out=have._array)
            QUIET.reset(token)
            have._storage.bump("add_")


def first(leaf: Tensor, array: np.ndarray, like: np.ndarray) -> None:
    """`accumulate` for a new array in the layout and dtype of `like`, where nothing is recorded."""
    if leaf._array is like:
        with _LOCKS[id(leaf) >> 6 & 15]:
            if leaf._grad is None:
                leaf._grad = wrap(array)
                return
    accumulate(leaf, wrap(array), False, fresh=True)
