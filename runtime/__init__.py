"""Compile, cache, load and run kernels.

Start reading at `kernels.load`. `toolchain` finds the compiler, `cache` and `folder` keep its
results, `blas` and `threads` serve running kernels, `history` remembers, `doctor` reports.
Imports only `ir` and `codegen`, and decides nothing about mathematics.
"""

from tracegrad.runtime.history import KernelRecord, clear_history, kernel_history
from tracegrad.runtime.kernels import LoadedKernel, address_of, load, new_args, pointer
from tracegrad.runtime.threads import get_num_threads, set_num_threads

__all__ = [
    "KernelRecord",
    "LoadedKernel",
    "address_of",
    "clear_history",
    "get_num_threads",
    "kernel_history",
    "load",
    "new_args",
    "pointer",
    "set_num_threads",
]
