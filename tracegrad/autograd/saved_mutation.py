"""`allow_mutation_on_saved_tensors`: what the tape keeps is copied just before it is overwritten.

Nodes recorded inside keep a `_Kept` in place of a tensor. It shares the tensor's memory until a
write to that memory is announced, then has a copy of its own. Start reading at
`allow_mutation_on_saved_tensors`.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from tracegrad.ir.errors import GradientError, SavedTensorError
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.storage import Storage, before_write
from tracegrad.tracer.tensor import Tensor, wrap

_NESTED = "allow_mutation_on_saved_tensors contexts cannot be nested"
_OUTSIDE = (
    "Trying to backward outside of the 'allow_mutation_on_saved_tensors' context"
    "in which the graph was originally recorded."
)


class _Kept:
    """What stands in the tape for one saved tensor, and is released with its node."""

    __slots__ = ("value", "storage", "__weakref__")

    def __init__(self, tensor: Tensor) -> None:
        self.value: Tensor | None = wrap(tensor._array, tensor._storage)
        self.storage = tensor._storage


class SavedMutations:
    """What `allow_mutation_on_saved_tensors` yields: the saved tensors of its block."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the callback of a weak reference may come at any time
        self._sharing: dict[int, set[weakref.ref[_Kept]]] = {}  # by memory
        self._all: weakref.WeakSet[_Kept] = weakref.WeakSet()
        self._open = True

    def clear(self) -> None:
        """Forget what was saved: a backward that needs it is refused from now on."""
        with self._lock:
            for kept in list(self._all):
                kept.value = None
            self._all.clear()
            self._sharing.clear()

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        memory = id(tensor._storage.memory)
        with self._lock:
            reference = weakref.ref(kept, functools.partial(self._released, memory))
            self._sharing.setdefault(memory, set()).add(reference)
            self._all.add(kept)
        return kept

    def _released(self, memory: int, reference: weakref.ref[_Kept]) -> None:
        """A node is gone: what it kept need not be copied any more."""
        with self._lock:
            references = self._sharing.get(memory, set())
            references.discard(reference)
            if not references:
                self._sharing.pop(memory, None)

    def _unpack(self, kept: _Kept) -> Tensor:
        if not self._open or kept.value is None:
            raise SavedTensorError(_OUTSIDE)
        return kept.value

    def _copy(self, storage: Storage) -> None:
        """`storage` is about to be written to: give those that share its memory their own."""
        with self._lock:
            for reference in self._sharing.pop(id(storage.memory), ()):
                kept = reference()
                if kept is not None and kept.value is not None:
                    kept.value = wrap(kept.value._array.copy())


_active = threading.Lock()


@contextmanager
def allow_mutation_on_saved_tensors() -> Iterator[SavedMutations]:
    """Let tensors that a backward needs be written to: the backward sees the values as they were.

    Inside the `with` block a saved tensor is copied just before the first write to its memory, by
    whatever alias. The backward must run inside the block too. Compiled functions called inside
    run eagerly.

    Returns:
        A context whose value has `clear()`, which forgets what was saved.
    Raises:
        GradientError: such a block is open already.
        SavedTensorError: (in the backward) the block in which the graph was recorded was left.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> with tg.autograd.graph.allow_mutation_on_saved_tensors():
        ...     y = x * 3
        ...     z = (y**2).sum()
        ...     y = y.zero_()
        ...     z.backward()
        >>> x.grad
        tensor([18., 18.])
    """
    if not _active.acquire(blocking=False):
        raise GradientError(_NESTED)
    saved = SavedMutations()
    before = state.saved_hooks
    try:
        if state.saved_hooks_disabled is not None:
            raise GradientError(state.saved_hooks_disabled)
        if state.recorder is not None:
            state.recorder.note("allow_mutation_on_saved_tensors")
        watching.append(saved)
        state.saved_hooks = (*before, (saved._pack, saved._unpack))
        before_write.append(saved._copy)
        yield saved
    finally:
        state.saved_hooks = before
        if saved in watching:
            watching.remove(saved)
        if saved._copy in before_write:
            before_write.remove(saved._copy)
        saved._open = False
        saved.clear()
        _active.release()
