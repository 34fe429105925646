"""Device memory: a pool per device that keeps what dies and gives it out again.

`allocate(nbytes, device)` -> `Memory`, which goes back to the pool when it dies, in whatever thread.
All work goes in one stream, so memory may be given out again while kernels that use it still wait.

Note [Blocks]
The driver gives *segments*; a segment is cut into *blocks*, neighbours in a list, each used or free.
A block that comes back is first kept whole under its size (`quick`), since programs ask for the same
sizes again and again. What no block of the very size can serve takes the smallest that is larger and
cuts it; before, all that is free is joined with free neighbours. Where nothing fits, the driver is
asked; where it has none, every segment that is free as a whole goes back to it, and it is asked once
more. Sizes of segments are PyTorch's: 2 MiB for requests up to 1 MiB, 20 MiB up to 10 MiB, else the
request rounded to 2 MiB.

Note [Coming back]
`Memory.__del__` may run anywhere, also while this thread holds the lock of the pool (the collector
runs when it likes). So it appends to a list and does nothing else, which is atomic.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator

from tracegrad.ir.errors import OutOfMemoryError
from tracegrad.runtime.cuda import driver

ROUND = 512
_SMALL = 1 << 20
_MEDIUM = 10 << 20
_SEGMENT = 2 << 20
_MEDIUM_SEGMENT = 20 << 20


class Block:
    """A piece of a segment: in no user's hands where `free`, and in the pool's order where `listed`."""

    __slots__ = ("address", "after", "before", "free", "listed", "segment", "size")

    def __init__(self, address: int, size: int, segment: driver.Allocation) -> None:
        self.address, self.size, self.segment = address, size, segment
        self.before: Block | None = None
        self.after: Block | None = None
        self.free, self.listed = True, False


class Memory:
    """Device memory that is somebody's until this object dies.

    Attributes:
        address: its first byte, a multiple of 512; 0 where `nbytes` is 0.
        nbytes: what was asked for.
        device: where it is.
    """

    __slots__ = ("__weakref__", "_block", "_returned", "address", "device", "nbytes")

    def __init__(
        self, block: Block | None, returned: list[Block | None], nbytes: int, device: int
    ) -> None:
        self._block, self._returned = block, returned
        self.address = 0 if block is None else block.address
        self.nbytes, self.device = nbytes, device

    def __del__(self) -> None:
        self._returned.append(self._block)  # see Note [Coming back]

    def __repr__(self) -> str:
        return f"<{self.nbytes} bytes at {self.address:#x} of cuda:{self.device}>"


class Pool:
    """The memory of one device.

    Attributes:
        device: its number.
        caching: False gives every block a segment of its own, and back at once, so that tools which
            look for wrong accesses see each. `$TRACEGRAD_NO_CUDA_MEMORY_CACHING`.
        allocated, reserved: bytes in users' hands, and taken from the driver.
        peak, peak_reserved: the most of each since `reset_peak`.
        retries, failures: how often the driver had none left, and how often that was the end.
    """

    def __init__(self, device: int, caching: bool = True) -> None:
        self.device, self.caching = device, caching
        self.allocated = self.reserved = self.peak = self.peak_reserved = 0
        self.retries = self.failures = self.requests = 0
        self._lock = threading.Lock()
        self._returned: list[Block | None] = []
        self._quick: dict[int, list[Block]] = {}
        self._sorted: list[tuple[int, int, Block]] = []  # joined free blocks, by size and address
        self._segments: dict[int, Block] = {}  # first blocks, by address

    def allocate(self, nbytes: int) -> Memory:
        """Memory of at least `nbytes`.

        Raises:
            OutOfMemoryError: the driver has none left. All is as it was before.
        """
        if not nbytes:
            return Memory(None, self._returned, 0, self.device)
        size = -(-nbytes // ROUND) * ROUND if self.caching else nbytes
        with self._lock:
            if self._returned:
                self._take_back()
            waiting = self._quick.get(size)
            block = waiting.pop() if waiting else self._find(size)
            block.free = False
            self.requests += 1
            self.allocated += block.size
            if self.allocated > self.peak:
                self.peak = self.allocated
        return Memory(block, self._returned, nbytes, self.device)

    def _take_back(self) -> None:
        """Make free what has died since."""
        returned = self._returned
        while returned:
            block = returned.pop()
            if block is None:
                continue
            block.free = True
            self.allocated -= block.size
            self._quick.setdefault(block.size, []).append(block)
        if not self.caching:
            self._release()

    def _find(self, size: int) -> Block:
        """A free block of a size, out of a larger one or of a new segment."""
        if self.caching:
            self._join()
            block = self._best(size)
            if block is not None:
                return self._cut(block, size)
        return self._cut(self._new_segment(size), size)

    def _join(self) -> None:
        """Put all that is free in order, joined with free neighbours."""
        fresh = [block for blocks in self._quick.values() for block in blocks]
        self._quick.clear()
        for block in fresh:
            if block.listed or not block.free:  # joined to another of these
                continue
            while block.before is not None and block.before.free:
                self._unlist(block.before)
                block = _joined(block.before, block)
            while block.after is not None and block.after.free:
                self._unlist(block.after)
                block = _joined(block, block.after)
            self._list(block)

    def _list(self, block: Block) -> None:
        insort(self._sorted, (block.size, block.address, block))
        block.listed = True

    def _unlist(self, block: Block) -> None:
        if block.listed:
            del self._sorted[bisect_left(self._sorted, (block.size, block.address))]
            block.listed = False

    def _best(self, size: int) -> Block | None:
        """The smallest free block that holds `size`, of segments for requests like it."""
        place = bisect_left(self._sorted, (size, 0))
        while place < len(self._sorted):
            block = self._sorted[place][2]
            if (block.segment.nbytes == _SEGMENT) == (size <= _SMALL):
                self._unlist(block)
                return block
            place += 1
        return None

    def _cut(self, block: Block, size: int) -> Block:
        """The front of a free block; what is left is free, where it is worth it."""
        left = block.size - size
        if left < ROUND or (size > _SMALL and left <= _SMALL):
            return block
        rest = Block(block.address + size, left, block.segment)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        self._list(rest)
        return block

    def _new_segment(self, size: int) -> Block:
        nbytes = segment_size(size) if self.caching else size
        try:
            got = driver.alloc(nbytes, self.device)
        except OutOfMemoryError:
            self.retries += 1
            self._take_back()  # pycuda has run the collector
            self._release()
            try:
                got = driver.alloc(nbytes, self.device)
            except OutOfMemoryError:
                self.failures += 1
                raise self._exhausted(size) from None
        self.reserved += nbytes
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._segments[got.address] = block = Block(got.address, nbytes, got)
        return block

    def _release(self) -> None:
        """Give every segment that is free as a whole back to the driver."""
        self._join()
        for address, block in list(self._segments.items()):
            if block.free and block.after is None:
                self._unlist(block)
                del self._segments[address]
                self.reserved -= block.size
                block.segment.free()

    def _exhausted(self, size: int) -> OutOfMemoryError:
        free, total = driver.memory_info(self.device)
        return OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {format_size(size)}. GPU {self.device} has a "
            f"total capacity of {format_size(total)} of which {format_size(free)} is free. Of the "
            f"allocated memory {format_size(self.allocated)} is allocated by tracegrad, and "
            f"{format_size(self.reserved - self.allocated)} is reserved by tracegrad but unallocated."
        )

    def settle(self) -> None:
        """Count what has died."""
        with self._lock:
            self._take_back()

    def empty(self) -> None:
        """Give back to the driver what nobody uses."""
        with self._lock:
            self._take_back()
            self._release()

    def reset_peak(self) -> None:
        """Let the peaks be what is there now."""
        with self._lock:
            self._take_back()
            self.peak, self.peak_reserved = self.allocated, self.reserved

    def blocks(self) -> Iterator[Block]:
        """Every block, in order of segments and addresses."""
        for first in self._segments.values():
            block: Block | None = first
            while block is not None:
                yield block
                block = block.after


def _joined(first: Block, second: Block) -> Block:
    """One free block in the place of two neighbours; the second is no more."""
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    second.free = False
    return first


def segment_size(size: int) -> int:
    """What to ask of the driver for a block that no free one can hold. See Note [Blocks].

    Example:
        >>> segment_size(512), segment_size(1 << 21), segment_size(15 << 20)
        (2097152, 20971520, 16777216)
    """
    if size <= _SMALL:
        return _SEGMENT
    if size < _MEDIUM:
        return _MEDIUM_SEGMENT
    return -(-size // _SEGMENT) * _SEGMENT


def format_size(nbytes: int) -> str:
    """A number of bytes in the unit that fits it, as PyTorch prints it.

    Example:
        >>> format_size(512), format_size(20 << 20), format_size(79 << 30)
        ('512 bytes', '20.00 MiB', '79.00 GiB')
    """
    if nbytes <= 1024:
        return f"{nbytes} bytes"
    for unit in ("KiB", "MiB"):
        nbytes, scaled = nbytes // 1024, nbytes / 1024
        if scaled <= 1024:
            return f"{scaled:.2f} {unit}"
    return f"{nbytes / 1024:.2f} GiB"


# --- the pools of this process --------------------------------------------------------------------

_pools: dict[int, Pool] = {}
_lock = threading.Lock()


def pool(device: int) -> Pool:
    """The pool of a device."""
    found = _pools.get(device)
    if found is None:
        caching = os.environ.get("TRACEGRAD_NO_CUDA_MEMORY_CACHING", "") in ("", "0")
        with _lock:
            found = _pools.setdefault(device, Pool(device, caching))
    return found


def allocate(nbytes: int, device: int) -> Memory:
    """Memory of `nbytes` on a device, until the object dies.

    Raises:
        OutOfMemoryError: there is none left; with sizes, and nothing changed.
    """
    return pool(device).allocate(nbytes)


def memory_allocated(device: int) -> int:
    """Bytes in users' hands."""
    pool(device).settle()
    return pool(device).allocated


def max_memory_allocated(device: int) -> int:
    """The most bytes in users' hands since the start or `reset_peak_memory_stats`."""
    return pool(device).peak


def memory_reserved(device: int) -> int:
    """Bytes taken from the driver."""
    return pool(device).reserved


def max_memory_reserved(device: int) -> int:
    """The most bytes taken from the driver since the start or `reset_peak_memory_stats`."""
    return pool(device).peak_reserved


def reset_peak_memory_stats(device: int) -> None:
    """Let the peaks be what is there now."""
    pool(device).reset_peak()


def empty_cache() -> None:
    """Give the driver back what nobody uses, on all devices."""
    for each in list(_pools.values()):
        each.empty()


def memory_stats(device: int) -> dict[str, int]:
    """Counters of a pool, by PyTorch's names.

    Example:
        >>> memory_stats(0)["allocated_bytes.all.current"]
        0
    """
    here = pool(device)
    here.settle()
    return {
        "allocated_bytes.all.current": here.allocated,
        "allocated_bytes.all.peak": here.peak,
        "reserved_bytes.all.current": here.reserved,
        "reserved_bytes.all.peak": here.peak_reserved,
        "allocation.all.allocated": here.requests,
        "segment.all.current": len(here._segments),
        "num_alloc_retries": here.retries,
        "num_ooms": here.failures,
    }


def forget() -> None:
    """Start with no pools (for tests); what they reserved is not given back."""
    with _lock:
        _pools.clear()
