"""Random tensors: counter-based generators, the same bits eagerly and compiled.

A `Generator` is a seed and a counter of the operations that drew from it; the two, as int64[2],
are the operand of the random primitives. Start reading at `Generator`, then `draw`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import uint8
from tracegrad.ir.errors import OperandError, ParameterError, SeedError
from tracegrad.runtime.cuda.array import DeviceArray, host
from tracegrad.tracer.device import default, device
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
        """Start the stream that belongs to `seed` from its beginning; returns the generator.

        Raises:
            SeedError: `seed` is no int.
            ParameterError: it is not in [-2**63, 2**64).
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise SeedError(f"manual_seed expected a long, but got {type(seed).__name__}")
        seed = int(seed)
        _note("manual_seed()")
        if not -(2**63) <= seed < 2**64:
            raise ParameterError("Overflow when unpacking long long")
        self._seed = seed % 2**64
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
        """Seed and counter as bytes, uint8[16]."""
        _note("get_state()")
        return wrap(self._words().view(np.uint8))

    def set_state(self, new_state: Tensor) -> Generator:
        """Go back to what `get_state` returned; returns the generator.

        Raises:
            OperandError: no tensor of bytes.
            SeedError: not as many bytes as `get_state` returns.
        """
        _note("set_state()")
        if not isinstance(new_state, Tensor):
            raise OperandError(f"expected a torch.ByteTensor, but got {type(new_state).__name__}")
        if new_state.dtype is not uint8:
            raise OperandError("RNG state must be a torch.ByteTensor")
        if new_state._array.shape != (16,):
            raise SeedError(
                "Expected a state of 16 bytes, as get_state() returns, but found the input RNG "
                f"state size to be {new_state._array.size}"
            )
        words = np.ascontiguousarray(host(new_state._array)).view(np.int64)
        self._seed, self._counter = int(words[0]) % 2**64, int(words[1])
        return self

    def clone_state(self) -> Generator:
        """A generator that will draw the same numbers."""
        twin = Generator()
        twin._seed, twin._counter = self._seed, self._counter
        return twin

    def _words(self) -> np.ndarray:
        seed = self._seed if self._seed < 2**63 else self._seed - 2**64
        return np.array([seed, self._counter], np.int64)

    def next_state(self, index: int | None = None) -> Tensor:
        """The operand of the next random operation, on CUDA device `index`; the counter moves on."""
        words: Any = self._words()
        made = wrap(words if index is None else DeviceArray.from_host(words, index))
        self._counter += 1
        if state.recorder is not None:
            state.recorder.random_state(made, self)
        return made

    def hand_back(self) -> None:
        """Take back the newest `next_state`: nothing was drawn from it."""
        self._counter -= 1

    def __repr__(self) -> str:
        return f"<Generator seed={self._seed} counter={self._counter} device={self.device}>"


def _note(what: str) -> None:
    """Tell the recorder that a generator was read or set: a replay would not do it again."""
    if state.recorder is not None:
        state.recorder.note(what)


default_generator = Generator()


def draw(
    name: str, generator: Generator | None, *operands: Any, where: device | None = None,
    **params: Any,
) -> Tensor:  # fmt: skip
    """Apply the random primitive `name` to the next state of `generator` (default: the global).

    Args:
        where: the device of the result; None means that of the operands, or the default one. The
            numbers are the same on all.
    """
    from tracegrad.ir import ops

    if generator is not None and not isinstance(generator, Generator):
        raise OperandError(f"expected a Generator, but got {type(generator).__name__}")
    source = default_generator if generator is None else generator
    place = where
    if place is None:
        place = next((x.device for x in operands if isinstance(x, Tensor)), default.where)
    return getattr(ops, name)(source.next_state(place.index), *operands, **params)


def manual_seed(seed: Any) -> Generator:
    """Seed the global generator, which all random functions use by default.

    Raises:
        ValueError: `seed` is a text that is no int.
        ParameterError: it is not in [-2**63, 2**64).
    """
    return default_generator.manual_seed(int(seed))


def seed() -> int:
    """Seed the global generator from the system's entropy; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the global generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """State of the global generator, uint8[16]."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Set the state of the global generator."""
    default_generator.set_state(new_state)


@contextlib.contextmanager
def fork_rng(
    devices: Any = None, enabled: bool = True, _caller: str = "fork_rng", _devices_kw: str = "devices",
    device_type: str = "cpu",
) -> Iterator[None]:  # fmt: skip
    """Put the global generator back, at the end of the block, to where it was at the start."""
    before = get_rng_state() if enabled else None
    try:
        yield
    finally:
        if before is not None:
            set_rng_state(before)
