"""CUDA devices: memory, modules, launches. Start reading at `tracegrad.runtime.cuda.driver`."""
