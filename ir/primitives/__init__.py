"""The table of primitives, one module per family. Importing this package fills the table."""

from tracegrad.ir.primitives import creation, movement, pointwise, reduction  # noqa: F401
