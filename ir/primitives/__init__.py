"""The table of primitives, one module per family. Importing this package fills the table."""

from tracegrad.ir.primitives import creation, movement, pointwise, reduction  # noqa: F401

from tracegrad.ir.primitives import (  # noqa: F401 isort: skip
    arithmetic, conversion, elementary, integers, logic, special,
)  # fmt: skip
from tracegrad.ir.primitives import indexing, search, slicing  # noqa: F401 isort: skip
from tracegrad.ir.primitives import contraction, convolution, window  # noqa: F401 isort: skip
from tracegrad.ir.primitives import random  # noqa: F401 isort: skip
