"""What the kernels with texts of their own share: types of elements, heads of kernels, index texts.

Start reading at `element`, then `own_kernel`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.cuda.plan import CudaKernel
from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.plan import Parameter
from tracegrad.codegen.prelude import without_comments
from tracegrad.codegen.window_geometry import summary_lines
from tracegrad.ir.dtypes import DType
from tracegrad.ir.graph import Node

INT_MAX = 2**31 - 1
LONGEST_GRID = 2**31 - 1  # blocks along x


@dataclass(frozen=True)
class Element:
    """How elements of a dtype are held and computed with.

    Attributes:
        stored: the C type in memory.
        compute: the type of products and running sums: float for halves; integers compute in
            uint64_t, whose wrapping is defined.
        total: the type of sums over many such sums.
        nbytes: of `compute`.
    """

    dtype: DType
    stored: str
    compute: str
    total: str
    nbytes: int

    def load(self, text: str) -> str:
        """An element in memory, as a number to compute with."""
        if self.stored == self.compute:
            return text
        return f"tg_load_{self.dtype.name}({text})" if self.is_float else f"(uint64_t){text}"

    def store(self, text: str, have: str = "") -> str:
        """A number of type `have` (or `compute`), as memory holds it."""
        have = have or self.compute
        if self.dtype.c_compute != self.dtype.c_type:
            text = text if have == "float" else f"(float){text}"
            return f"tg_store_{self.dtype.name}({text})"
        return text if have == self.stored else f"({self.stored}){text}"

    @property
    def is_float(self) -> bool:
        """Whether it computes in float or double."""
        return self.dtype.kind == "f"

    @property
    def zero(self) -> str:
        """Nothing, in the type that is computed with."""
        return {"float": "0.0f", "double": "0.0"}.get(self.compute, "0")

    def add_product(self, total: str, a: str, b: str) -> str:
        """The statement `total += a * b`, fused where that is one rounding less."""
        if not self.is_float:
            return f"{total} += {a} * {b};"
        return f"{total} = {'fmaf' if self.compute == 'float' else 'fma'}({a}, {b}, {total});"


def element(dtype: DType) -> Element:
    """The types for one dtype."""
    if dtype.kind != "f":
        return Element(dtype, dtype.c_type, "uint64_t", "uint64_t", 8)
    compute = "double" if dtype.name == "float64" else "float"
    return Element(dtype, dtype.c_type, compute, "double", 8 if compute == "double" else 4)


def plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Sizes as the plain numbers that they are here: these kernels are made for one size."""
    return tuple(int(n) for n in shape)


def index_type(*counts: int) -> str:
    """The C type that holds positions in buffers of so many elements."""
    return "int" if max(counts, default=0) <= INT_MAX else "int64_t"


def reach(buffer: Buffer) -> int:
    """Elements from the first to the last of a buffer."""
    steps = zip(plain(buffer.shape), plain(buffer.strides), strict=True)
    return 1 + sum((n - 1) * abs(s) for n, s in steps if n > 1)


def described(name: str, buffer: Buffer, written: bool = False, what: str = "") -> Parameter:
    """A parameter under the name that the kernel's text gives it."""
    shape = f"{buffer.dtype.name}[{', '.join(map(str, plain(buffer.shape)))}]"
    return Parameter(name, buffer.dtype.c_type, written, f"{what} {shape}".strip())


def summary_of(node: Node, *lines: str) -> tuple[str, ...]:
    """Comment lines above a kernel; the last one is the Python line."""
    where = "" if node.location is None else f"{node.location}: {node.location.text}".rstrip(": ")
    return summary_lines(*lines, where)


def own_kernel(template: str, kernel: CudaKernel, **variables: Any) -> CudaKernel:
    """The kernel with its text, from a template that gets `kernel` and `variables`."""
    from tracegrad.codegen.unit import render

    text = render(template, kernel=kernel, threads=_threads(kernel), **variables)
    return replace(kernel, text=without_unused(text.strip()))


_DECLARED = re.compile(r"^ *const (?:int|int64_t) (\w+) = [^;,]*;\n", re.MULTILINE)


def without_unused(text: str) -> str:
    """A kernel without the positions that it declares and does not use.

    Example:
        >>> without_unused("    const int a = 1;\\n    const int b = a;\\n    const int c = 2;\\n    f(c);")
        '    const int c = 2;\\n    f(c);'
    """
    counts = Counter(re.findall(r"\w+", without_comments(text)))
    fewer = _DECLARED.sub(lambda m: m[0] if counts[m[1]] > 1 else "", text)
    return text if fewer == text else without_unused(fewer)


def _threads(kernel: CudaKernel) -> int:
    x, y, z = kernel.block
    return x * y * z


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def parts_of(number: str, sizes: Sequence[tuple[str, int]], c_type: str = "int") -> list[str]:
    """Declarations that take a row-major number apart; none for parts of size 1.

    Example:
        >>> parts_of("p", [("image", 8), ("o0", 5), ("o1", 7)])
        ['const int image = p / 35;', 'const int o0 = p / 7 % 5;', 'const int o1 = p % 7;']
    """
    lines: list[str] = []
    inner = 1
    for position in range(len(sizes) - 1, -1, -1):
        name, size = sizes[position]
        text = number if inner == 1 else f"{number} / {inner}"
        if any(n > 1 for _, n in sizes[:position]):
            text += f" % {size}"
        if size > 1:
            lines.append(f"const {c_type} {name} = {text};")
        inner *= size
    return lines[::-1]


def position(terms: Sequence[tuple[str, int, int]]) -> str:
    """The text of `sum(stride * name)`, names of size 1 left out; terms are (name, size, stride)."""
    total = Affine()
    for name, size, stride in terms:
        if size > 1:
            total = total + Affine(0, ((name, stride),))
    return total.text()
