"""A small kernel for the tests: C that multiplies four floats, and its launch."""

from __future__ import annotations

import numpy as np

from tracegrad.runtime import kernels

BODY = """\
int tg_run(void **args) {
    const float *x = args[0];
    float *y = args[1];
    for (int i = 0; i < 4; i++) y[i] = FACTOR * x[i];
    return FACTOR;
}
"""


def source(factor: int) -> str:
    """C that multiplies four floats by a number and returns it."""
    return f"#define FACTOR {factor}\n{BODY}"


def launch(kernel: kernels.LoadedKernel) -> list[float]:
    """Run a kernel made from `source` on 1, 2, 3, 4."""
    x, y = np.arange(1, 5, dtype=np.float32), np.zeros(4, np.float32)
    kernel.run((kernels.address_of(x), kernels.address_of(y)))
    return [float(v) for v in y]
