"""Transforms of functions, freely nested: PyTorch's `torch.func`. Start at `tracegrad.func.levels`."""

from tracegrad.func.batching import vmap
from tracegrad.func.gradients import grad, grad_and_value, vjp
from tracegrad.func.matrices import hessian, jacfwd, jacrev, jvp, linearize
from tracegrad.func.modules import functional_call, stack_module_state

__all__ = [
    "functional_call", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp", "linearize",
    "stack_module_state", "vjp", "vmap",
]  # fmt: skip
