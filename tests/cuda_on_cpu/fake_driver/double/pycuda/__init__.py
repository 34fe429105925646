"""Stands for pycuda where it is not installed: what `tracegrad.runtime.cuda.driver` calls of it."""
