"""Compiling in another process, while this one goes on with eager calls.

A *worker* process, one per process, is started by the first job and leaves after a minute without
one. It generates, compiles and puts the result into the disk cache; who finds a job finished makes
the same build here, and finds all of it in the cache. So what goes wrong in a worker costs time,
never a result: the build is made here then, and raises here. Start reading at `submit`; `main` is
what the worker runs.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import spawn
from multiprocessing.connection import Connection, Pipe
from typing import Any

from tracegrad.codegen.checks import Check
from tracegrad.ir.errors import CompilerNotFound
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime import blas, folder, toolchain

PATIENCE_S = 3.0  # of those who wait for a worker, before they look whether it has any time
TURN_S = 2e-4  # for which a thread of ours keeps the interpreter from the caller's
PIPE_BYTES = 16384  # of a message; the kernel's buffer takes several
IDLE_S = 60.0  # without a job; then the worker leaves
_ENVIRONMENT = ("CC", "CFLAGS", "CPATH", "HOME", "LIBRARY_PATH", "PATH", "TMPDIR", "XDG_CACHE_HOME")
_START = """
import json, os, sys
if sys.argv[3] == "idle":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
else:
    os.nice(5)
sys.path[:] = json.loads(sys.argv[1])
from tracegrad.runtime.background import main
main(int(sys.argv[2]))
"""


class Job:
    """One unit that the worker makes.

    Attributes:
        then: what a thread of this process does with it before it counts as finished; not called
            where the worker is lost.
        problem: why the worker could not, in words; empty otherwise.
    """

    def __init__(self, worker: Worker, then: Callable[[], None]) -> None:
        self._worker = worker
        self._over = threading.Event()
        self.then = then
        self.problem = ""
        self.path = ""  # of the file that holds the work, where it is large

    @property
    def finished(self) -> bool:
        """Whether the build would be quick now, or must be made here anyway."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is finished, at most `timeout` seconds; returns whether it is."""
        if timeout is not None and timeout <= PATIENCE_S:
            return self._over.wait(timeout)
        if self._over.wait(PATIENCE_S):
            return True
        self._worker.hurry()
        return self._over.wait(None if timeout is None else max(0.0, timeout - PATIENCE_S))

    def finish(self, problem: str = "") -> None:
        """The worker has made it, or could not."""
        if self.path:
            with contextlib.suppress(OSError):  # the worker has read and removed it
                os.unlink(self.path)
        self.problem = problem
        self._over.set()


def _letter(work: bytes) -> bytes:
    """The message about a job: its work, or where that lies if it is more than a pipe surely takes.

    The caller must not wait until the worker, which may be at another job, has read it.
    """
    if len(work) <= PIPE_BYTES:
        return b"W" + work
    with tempfile.NamedTemporaryFile(prefix="tracegrad-job-", delete=False) as file:
        file.write(work)
    return b"P" + os.fsencode(file.name)


def _opened(letter: bytes) -> bytes:
    """The work that a message is about; a file that held it is removed."""
    if letter[:1] == b"W":
        return letter[1:]
    path = os.fsdecode(letter[1:])
    try:
        with open(path, "rb") as file:
            return file.read()
    finally:
        os.unlink(path)


class Worker:
    """The worker process, seen from the process that gives it jobs; a thread hears what it says."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.lost = False
        self.idle = idle_class()
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._count = 0
        self._connection, theirs = Pipe()
        number = theirs.fileno()
        try:
            self._process = subprocess.Popen(
                [spawn.get_executable(), "-c", _START, json.dumps(sys.path), str(number),
                 "idle" if self.idle else "nice"],
                pass_fds=[number], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()
        threading.Thread(target=self._listen, name="tracegrad-compiler", daemon=True).start()

    def give(self, work: bytes, then: Callable[[], None]) -> Job:
        """Send a job; it is finished at once if the worker is gone."""
        job = Job(self, then)
        with self._lock:
            if not self._jobs:
                room.leave()
            self._count += 1
            self._jobs[self._count] = job
            try:
                letter = _letter(work)
                job.path = os.fsdecode(letter[1:]) if letter[:1] == b"P" else ""
                self._connection.send_bytes(letter)
            except OSError:
                self._lose()
        return job

    def _listen(self) -> None:
        with _awake:
            blas.find()  # loaded meanwhile, so that the call that finds its job finished need not
        try:
            while True:
                number, problem = self._connection.recv()
                with _awake:
                    self._heard(number, problem)
        except (OSError, EOFError):
            with _awake, self._lock:
                self._lose()
            self._connection.close()
            self._process.wait()

    def _heard(self, number: int, problem: str) -> None:
        with self._lock:
            job = self._jobs.get(number)
        if job is not None:
            with quick_turns():
                job.then()
        with self._lock:
            if self._jobs.pop(number, None) is not None and job is not None:
                job.finish(problem)
            if not self._jobs:
                room.take_back()

    def hurry(self) -> None:
        """Somebody waits: where others leave no idle time to it, end the worker. What it was to make
        is made where it is needed then, and the next worker takes its share.
        """
        global _starved
        if self.idle and not self.lost and os.getloadavg()[0] >= processors():
            _starved = True
            self._process.kill()

    def release(self) -> None:
        """Let it end by itself, after the job that it is at: the cache may be glad of it."""
        with self._lock:
            self._lose()
        with contextlib.suppress(OSError):  # it has gone already
            self._connection.send_bytes(b"")
        self._process.returncode = self._process.poll() or 0  # nobody waits for it

    def _lose(self) -> None:
        self.lost = True
        for job in self._jobs.values():
            job.finish("the worker is gone")
        self._jobs.clear()
        room.take_back()


@contextlib.contextmanager
def quick_turns() -> Iterator[None]:
    """Let the caller's thread have the interpreter back soon, while this one loads what was made.

    By default a thread may keep it for 5 ms; a call of 0.8 ms would then take ten times as long.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_S))
    try:
        yield
    finally:
        if sys.getswitchinterval() < before:
            sys.setswitchinterval(before)


class Room:
    """A processor left to the compiler by the threads of NumPy's BLAS, which wait by spinning.

    Measured on 2 cores: a network's forward and backward of 0.8 ms took 40 ms beside a compiler of the
    lowest priority, as each time that such a thread yields, the compiler keeps its processor until
    the next tick; on one thread fewer than there are processors it took 0.8 to 0.9 ms.
    """

    def __init__(self) -> None:
        self._controller: Any = None
        self._before: dict[Any, int] = {}  # counts of threads, by the library

    def leave(self) -> None:
        """Take a thread from each BLAS library that uses all processors."""
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        if self._controller is None:
            self._controller = ThreadpoolController().select(user_api="blas")
        most = max(1, processors() - 1)
        for library in self._controller.lib_controllers:
            count = library.get_num_threads()
            if count is not None and count > most:
                self._before[library] = count
                library.set_num_threads(most)

    def take_back(self) -> None:
        """Give it back to those who still have the count that `leave` gave them."""
        most = max(1, processors() - 1)
        while self._before:
            library, count = self._before.popitem()
            if library.get_num_threads() == most:
                library.set_num_threads(count)


def idle_class() -> bool:
    """Whether a worker should have idle time only: where there is some."""
    possible = hasattr(os, "SCHED_IDLE") and not _starved
    return possible and os.getloadavg()[0] < processors() / 2


def processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


room = Room()
_starved = False  # a worker had no time
_worker: Worker | None = None
_worker_lock = threading.Lock()


def submit(
    graph: Graph, strides: Mapping[Value, Shape] | None = None, checks: Sequence[Check] = (),
    returned: int | None = None, then: Callable[[], None] = lambda: None,
    inplace: Mapping[int, int] | None = None,
) -> Job | None:  # fmt: skip
    """Begin to make what `executable.build` with the same arguments needs.

    Args:
        then: called in a thread of this process once the cache holds it; must not raise.
    Returns:
        The job; None where no other process can do it: there is no compiler, no cache that another
        process can write to, no way to start one, or the graph cannot be sent.
    """
    global _worker
    if isinstance(graph, Graph) and graph.device != "cpu":
        return None
    try:
        frozen = getattr(sys, "frozen", False)  # a program of its own, that would start once more
        if frozen or not hasattr(os, "fork") or spawn.get_executable() is None:
            return None
        if not toolchain.find().present or not folder.current().writable:
            return None
        work = _packed((graph, dict(strides or {}), tuple(checks), returned, inplace))
        if work is None:
            return None
        environment = _environment()
        with _worker_lock:
            if _worker is not None and (_worker.lost or _worker.environment != environment):
                _worker.release()
                _worker = None
            if _worker is None:
                _worker = Worker(environment)
            return _worker.give(work, then)
    except (CompilerNotFound, OSError):
        return None  # `executable.build` goes on without, and says what is wrong where something is


def _packed(job: Any) -> bytes | None:
    """A job as bytes; None where something in it (a function of the user's) cannot be sent."""
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError):  # pickle's three ways to say so
        return None


def _environment() -> dict[str, str]:
    """The variables on which the code depends, and the place where it is kept."""
    return {
        name: value for name, value in os.environ.items()
        if name.startswith("TRACEGRAD_") or name in _ENVIRONMENT
    }  # fmt: skip


def dismiss() -> None:
    """Let the worker go; jobs that it has not finished are made where they are needed."""
    global _worker
    with _worker_lock:
        if _worker is not None:
            _worker.release()
            _worker = None


_awake = threading.RLock()
"""Held by the threads that listen while they do anything but listen, and by whoever forks: a child
must not inherit a lock (of an import, of the cache) that such a thread was holding.
"""


def _forget() -> None:
    """In a forked child: the worker is the parent's, and there is no thread that listens."""
    global _worker, _worker_lock, _awake
    _awake = threading.RLock()
    _worker_lock = threading.Lock()
    if _worker is not None:
        _worker._lock = threading.Lock()
        _worker._lose()
        _worker._connection.close()
        _worker._process.returncode = 0
        _worker = None


atexit.register(dismiss)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _awake.acquire(),
        after_in_parent=lambda: _awake.release(),
        after_in_child=_forget,
    )


# ---- in the worker ------------------------------------------------------------------------------


def main(number: int) -> None:
    """Make units until the other end is closed or nothing has come for a minute."""
    from tracegrad.runtime import executable, kernels

    connection = Connection(number)
    count = 0
    while connection.poll(IDLE_S):
        try:
            letter = connection.recv_bytes()
        except (EOFError, OSError):
            return
        if not letter:
            return
        count += 1
        problem = ""
        try:
            graph, strides, checks, returned, inplace = pickle.loads(_opened(letter))
            executable.build(graph, "build", strides, checks, returned, inplace=inplace)
            kernels.unload_all()
        except Exception as error:  # the other process will meet it, too, and tell the user
            problem = f"{type(error).__name__}: {error}"
        try:
            connection.send((count, problem))
        except OSError:
            return
