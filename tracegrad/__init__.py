"""tracegrad: a graph-compiling autograd with readable generated code.

The names here are PyTorch's: `import tracegrad as torch` runs its autograd tutorial. Heavy parts
(`nn`, `optim`, `compile` and its toolchain) are loaded when first used.
"""

# ruff: noqa: F401  (imported to be found here)

import importlib as _importlib
import math as _math
from typing import Any as _Any

from tracegrad import errors
from tracegrad.ir.dtypes import DType as dtype
from tracegrad.ir.dtypes import (
    bfloat16,
    complex32,
    complex64,
    complex128,
    float16,
    float32,
    float64,
    get_default_dtype,
    int8,
    int16,
    int32,
    int64,
    set_default_dtype,
    uint8,
)
from tracegrad.ir.dtypes import bool_ as bool
from tracegrad.tracer import factories as _factories
from tracegrad.tracer import from_data as _from_data
from tracegrad.tracer import gathering as _gathering
from tracegrad.tracer import inplace_methods as _inplace
from tracegrad.tracer import joining as _joining
from tracegrad.tracer import linalg as _linalg
from tracegrad.tracer import methods as _methods
from tracegrad.tracer import out as _out
from tracegrad.tracer import pointwise as _pointwise
from tracegrad.tracer import queries as _queries
from tracegrad.tracer import random_factories as _random
from tracegrad.tracer import ranges as _ranges
from tracegrad.tracer import reductions as _reductions
from tracegrad.tracer import regions as _regions
from tracegrad.tracer import shapes as _shapes
from tracegrad.tracer import signatures as _signatures
from tracegrad.tracer import stacking as _stacking
from tracegrad.tracer import typed as _typed
from tracegrad.tracer import updates as _updates
from tracegrad.tracer.device import Size, device, get_default_device, set_default_device
from tracegrad.tracer.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from tracegrad.tracer.layout import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    memory_format,
    preserve_format,
    sparse_coo,
    sparse_csr,
    strided,
)
from tracegrad.tracer.limits import finfo, iinfo
from tracegrad.tracer.printing import get_printoptions, set_printoptions
from tracegrad.tracer.random import (
    Generator,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from tracegrad.tracer.tensor import Tensor

__version__ = "0.1.0"

float, double, half = float32, float64, float16
chalf, cfloat, cdouble = complex32, complex64, complex128
long, int, short = int64, int32, int16
pi, e, inf, nan = _math.pi, _math.e, _math.inf, _math.nan

for _table in (
    _pointwise.FUNCTIONS, _reductions.FUNCTIONS, _shapes.FUNCTIONS, _joining.FUNCTIONS,
    _linalg.FUNCTIONS, _gathering.FUNCTIONS, _regions.FUNCTIONS, _updates.FUNCTIONS,
    _inplace.INPLACE_FUNCTIONS, _queries.FUNCTIONS,
):  # fmt: skip
    for _name, _function in _table.items():
        _public = _out.with_out if _name in _out.NAMES else _signatures.as_function
        globals()[_name] = _public(_name, _function)
globals().update(_stacking.ATLEAST)
for _made in (_factories.FUNCTIONS, _random.FUNCTIONS, _typed.TYPES):  # they say it themselves
    globals().update(
        {name: _out.with_out(name, f) if name in _out.NAMES else f for name, f in _made.items()}
    )


_LAYERS = ("codegen", "ir", "runtime", "tracer")  # packages inside, no part of the public names
__all__ = sorted(name for name in globals() if name[0] != "_" and name not in _LAYERS)


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, *_LAZY_NAMES, "__doc__", "__file__", "__version__"})


_LAZY = ("autograd", "func", "nn", "optim", "cuda", "random", "utils", "profiler")
_LAZY_NAMES = {
    "compile": "tracegrad.tracer.compile",
    "eager": "tracegrad.tracer.compile",
    "print": "tracegrad.tracer.callbacks",
    "debug_callback": "tracegrad.tracer.callbacks",
    "CompiledFunction": "tracegrad.tracer.compile",
    "EagerWarning": "tracegrad.tracer.verification",
    "RecaptureWarning": "tracegrad.tracer.capturing",
    "VerificationWarning": "tracegrad.tracer.verification",
    "is_anomaly_check_nan_enabled": "tracegrad.autograd",
    "is_anomaly_enabled": "tracegrad.autograd",
    "vmap": "tracegrad.func",
    "kernel_history": "tracegrad.runtime.history",
    "set_num_threads": "tracegrad.runtime.threads",
    "get_num_threads": "tracegrad.runtime.threads",
}


def __getattr__(name: str) -> _Any:
    if name in _LAZY_NAMES:
        found = getattr(_importlib.import_module(_LAZY_NAMES[name]), name)
    elif name in _LAZY:
        found = _importlib.import_module(f"tracegrad.{name}")
    else:
        raise AttributeError(f"module 'tracegrad' has no attribute {name!r}")
    globals()[name] = found
    return found
