"""Compile, cache, load and run kernels.

Start reading at `kernels.load`. `toolchain` finds the compiler, `cache` and `folder` keep its
results, `blas` and `threads` serve running kernels, `history` remembers, `doctor` reports.
Imports only `ir` and `codegen`, and decides nothing about mathematics.

The names below load their modules at first use: eager tensors on the host need none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    **dict.fromkeys(("KernelRecord", "clear_history", "kernel_history"), "history"),
    **dict.fromkeys(("LoadedKernel", "address_of", "load", "new_args", "pointer"), "kernels"),
    **dict.fromkeys(("get_num_threads", "set_num_threads"), "threads"),
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
