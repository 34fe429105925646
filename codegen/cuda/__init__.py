"""CUDA from the schedule that C is made from. Start reading at `tracegrad.codegen.cuda.unit`."""
