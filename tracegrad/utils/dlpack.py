"""Memory shared with other libraries, under PyTorch's module name."""

from tracegrad.tracer.from_data import from_dlpack, to_dlpack

__all__ = ["from_dlpack", "to_dlpack"]
