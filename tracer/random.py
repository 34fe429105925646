"""Random tensors: counter-based generators, the same bits eagerly and compiled.

A `Generator` is a seed and a counter of the operations that drew from it; the two, as int64[2],
are the operand of the random primitives. Start reading at `Generator`, then `draw`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

_START = 67280421310721  # the seed that a fresh PyTorch generator reports


class Generator:
    """A stream of random numbers: `seed` and the number of operations drawn so far.

    Example:
        >>> import tracegrad as tg
        >>> g = tg.Generator().manual_seed(0)
        >>> a = tg.rand(2, generator=g)
        >>> bool((a == tg.rand(2, generator=g.manual_seed(0))).all())
        True
    """

    def __init__(self, device: Any = "cpu") -> None:
        from tracegrad.tracer.device import as_device

        self.device = as_device(device)
        self._seed = _START
        self._counter = 0

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream that belongs to `seed` from its beginning."""
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise OperandError(f"manual_seed expected a long, but got {type(seed).__name__}")
        seed = int(seed)
        _note("manual_seed()")
        if not -(2**63) <= seed < 2**64:
            raise ParameterError(f"Overflow when unpacking long: {seed}")
        self._seed = seed
        self._counter = 0
        return self

    def seed(self) -> int:
        """Seed from the system's entropy; returns the seed."""
        return self.manual_seed(int.from_bytes(os.urandom(7), "little"))._seed

    def initial_seed(self) -> int:
        """The seed."""
        _note("initial_seed()")
        return self._seed

    def get_state(self) -> Tensor:
        """Seed and counter, int64[2]."""
        _note("get_state()")
        return wrap(self._words())

    def set_state(self, new_state: Tensor) -> Generator:
        """Go back to what `get_state` returned."""
        _note("set_state()")
        words = new_state._array if isinstance(new_state, Tensor) else np.asarray(new_state)
        if words.shape != (2,) or words.dtype != np.int64:
            raise OperandError("RNG state must be what get_state() returned: int64 of shape (2,)")
        self._seed, self._counter = int(words[0]), int(words[1])
        return self

    def _words(self) -> np.ndarray:
        seed = self._seed if self._seed < 2**63 else self._seed - 2**64
        return np.array([seed, self._counter], np.int64)

    def next_state(self) -> Tensor:
        """The operand of the next random operation; the counter moves on."""
        made = wrap(self._words())
        self._counter += 1
        if state.recorder is not None:
            state.recorder.random_state(made, self)
        return made

    def __repr__(self) -> str:
        return f"<Generator seed={self._seed} counter={self._counter} device={self.device}>"


def _note(what: str) -> None:
    """Tell the recorder that a generator was read or set: a replay would not do it again."""
    if state.recorder is not None:
        state.recorder.note(what)


default_generator = Generator()


def draw(name: str, generator: Generator | None, *operands: Any, **params: Any) -> Tensor:
    """Apply the random primitive `name` to the next state of `generator` (default: the global)."""
    from tracegrad.ir import ops

    if generator is not None and not isinstance(generator, Generator):
        raise OperandError(f"expected a Generator, but got {type(generator).__name__}")
    source = default_generator if generator is None else generator
    return getattr(ops, name)(source.next_state(), *operands, **params)


def manual_seed(seed: int) -> Generator:
    """Seed the global generator, which all random functions use by default."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed the global generator from the system's entropy; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the global generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """State of the global generator, int64[2]."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Set the state of the global generator."""
    default_generator.set_state(new_state)
