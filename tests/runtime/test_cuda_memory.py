"""The pool of device memory, on a driver that only counts: sizes, joining, faults, threads."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tracegrad.ir.errors import OutOfMemoryError
from tracegrad.runtime.cuda import memory
from tracegrad.runtime.cuda.memory import Block, Memory, Pool

MIB = 1 << 20


@dataclass
class Segment:
    address: int
    nbytes: int
    home: Driver

    def free(self) -> None:
        del self.home.segments[self.address]


@dataclass
class Driver:
    """Stands for `runtime.cuda.driver`: addresses that nobody may touch, up to a limit."""

    limit: int = 256 * MIB
    top: int = 1 << 32
    asked: int = 0
    segments: dict[int, Segment] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(s.nbytes for s in self.segments.values())

    def alloc(self, nbytes: int, device: int) -> Segment:
        self.asked += 1
        if self.used + nbytes > self.limit:
            raise OutOfMemoryError("out of memory")
        made = Segment(self.top, nbytes, self)
        self.top += nbytes + 4096
        self.segments[made.address] = made
        return made

    def memory_info(self, device: int) -> tuple[int, int]:
        return self.limit - self.used, self.limit


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    double = Driver()
    monkeypatch.setattr(memory, "driver", double)
    yield double


def check(pool: Pool, held: list[Memory]) -> None:
    """What must hold at any time: blocks tile their segments, and users have theirs alone."""
    pool.settle()
    blocks: list[Block] = list(pool.blocks())
    spans = sorted((b.address, b.address + b.size) for b in blocks)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert sum(b.size for b in blocks) == pool.reserved
    used = sorted(b.address for b in blocks if not b.free)
    assert used == sorted(m.address for m in held if m.nbytes)
    assert pool.allocated == sum(b.size for b in blocks if not b.free)
    free = [b for b in blocks if b.free]
    known = [entry[2] for entry in pool._sorted]
    known += [b for waiting in pool._quick.values() for b in waiting]
    assert sorted(b.address for b in free) == sorted(b.address for b in known)
    joined = [b for b in blocks if b.listed and b.before is not None and b.before.listed]
    assert not joined, "neighbours in order that are two"
    for piece in held:
        block: Any = piece._block
        assert block is None or (block.size >= piece.nbytes and not block.free)


def test_memory_comes_back_and_is_given_out_again(driver: Driver) -> None:
    pool = Pool(0)
    first = pool.allocate(1000)
    address = first.address
    assert address % 512 == 0
    assert pool.allocated == 1024
    del first
    assert pool.allocate(900).address == address
    assert driver.asked == 1


def test_no_bytes_need_no_memory(driver: Driver) -> None:
    pool = Pool(0)
    nothing = pool.allocate(0)
    assert (nothing.address, nothing.nbytes) == (0, 0)
    del nothing
    assert pool.allocated == driver.asked == 0


def test_small_requests_share_a_segment(driver: Driver) -> None:
    pool = Pool(0)
    held = [pool.allocate(100) for _ in range(4096)]
    assert driver.asked == 1
    assert driver.used == 2 * MIB == pool.reserved
    check(pool, held)
    assert len({m.address for m in held}) == 4096


def test_neighbours_are_joined_for_a_larger_request(driver: Driver) -> None:
    pool = Pool(0)
    held = [pool.allocate(4 * MIB) for _ in range(5)]  # one segment of 20 MiB
    assert driver.asked == 1
    held.clear()
    check(pool, [])
    large = pool.allocate(9 * MIB)
    assert driver.asked == 1
    check(pool, [large])


def test_a_large_request_has_a_segment_of_its_own_size(driver: Driver) -> None:
    pool = Pool(0)
    held = [pool.allocate(15 * MIB + 1)]
    assert pool.reserved == 16 * MIB
    check(pool, held)


def test_the_cache_is_emptied_before_a_request_fails(driver: Driver) -> None:
    pool = Pool(0)
    first = pool.allocate(200 * MIB)
    del first
    second = pool.allocate(250 * MIB)
    assert (pool.retries, pool.failures) == (1, 0)
    check(pool, [second])


def test_a_request_that_fails_leaves_all_as_it_was(driver: Driver) -> None:
    pool = Pool(3)
    held = [pool.allocate(100 * MIB), pool.allocate(1000)]
    spare = pool.allocate(50 * MIB)
    del spare
    for _ in range(3):
        with pytest.raises(OutOfMemoryError) as caught:
            pool.allocate(200 * MIB)
        check(pool, held)
    assert str(caught.value) == (
        "CUDA out of memory. Tried to allocate 200.00 MiB. GPU 3 has a total capacity of 256.00 MiB "
        "of which 154.00 MiB is free. Of the allocated memory 100.00 MiB is allocated by tracegrad, "
        "and 2.00 MiB is reserved by tracegrad but unallocated."
    )
    assert pool.failures == 3
    held.append(pool.allocate(10 * MIB))
    check(pool, held)


def test_peaks_and_stats(driver: Driver) -> None:
    pool = Pool(0)
    first, second = pool.allocate(MIB), pool.allocate(MIB)
    del first
    pool.settle()
    assert (pool.allocated, pool.peak) == (MIB, 2 * MIB)
    pool.reset_peak()
    assert pool.peak == MIB
    pool.empty()
    assert pool.reserved == 2 * MIB
    del second
    pool.empty()
    assert (pool.reserved, driver.used) == (0, 0)


def test_without_caching_each_piece_is_a_segment_of_its_own(driver: Driver) -> None:
    pool = Pool(0, caching=False)
    first, second = pool.allocate(100), pool.allocate(7 * MIB)
    assert sorted(s.nbytes for s in driver.segments.values()) == [100, 7 * MIB]
    del first, second
    pool.settle()
    assert driver.used == 0
    check(pool, [])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_blocks_tile_their_segments(driver: Driver, seed: int) -> None:
    chance = random.Random(seed)
    pool = Pool(0)
    held: list[Memory] = []
    for step in range(400):
        if held and chance.random() < 0.48:
            held.pop(chance.randrange(len(held)))
        elif chance.random() < 0.02:
            pool.empty()
        else:
            scale = chance.choice([1 << 9, 1 << 12, 1 << 16, MIB, 4 * MIB, 12 * MIB])
            try:
                held.append(pool.allocate(chance.randrange(0, 3 * scale)))
            except OutOfMemoryError:
                assert driver.used + 2 * MIB > driver.limit // 4
        if step % 10 == 0:
            check(pool, held)
    held.clear()
    pool.empty()
    assert (pool.allocated, pool.reserved, driver.used) == (0, 0, 0)


def test_memory_in_cycles_that_the_collector_frees_inside_the_pool(driver: Driver) -> None:
    pool = Pool(0)
    old = gc.get_threshold()
    gc.set_threshold(1)  # the collector runs at each allocation of Python's, under the lock too
    try:
        for _ in range(200):
            cycle: dict[str, Any] = {"memory": pool.allocate(600)}
            cycle["self"] = cycle
            del cycle
    finally:
        gc.set_threshold(*old)
    gc.collect()
    pool.settle()
    assert pool.allocated == 0


def test_threads_share_a_pool(driver: Driver) -> None:
    pool = Pool(0)
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance, held = random.Random(seed), []
        for _ in range(300):
            held.append(pool.allocate(chance.randrange(1, 5000)))
            if len(held) > 10:
                held.pop(chance.randrange(10))
        if len({m.address for m in held}) != len(held):
            wrong.append("one piece twice")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    pool.settle()
    assert pool.allocated == 0
    check(pool, [])
