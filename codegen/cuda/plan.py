"""Plans of CUDA kernels: every decision, in frozen dataclasses that print and can be kept as JSON.

A *step* of the schedule (a loop nest, a loop over rows, a node with a kernel of its own) becomes one
or more `CudaKernel`s, run one after another. `CudaUnit` is what the runtime loads and launches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tracegrad.codegen.plan import Line, Loop, Parameter, Scratch

WARP = 32
MOST_THREADS = 1024
Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class CudaTarget:
    """What generated CUDA may rely on.

    Attributes:
        arch: the architecture that kernels are compiled for, such as "sm_90".
        multiprocessors: how many the device has; grids of loops are sized by it.
        shared_bytes: shared memory of a block, without asking for more.
        aligned: whether all inputs begin at a multiple of 16 bytes, so that no kernel has to look.
        cublas: whether the runtime can call cuBLAS, so that products may be `Product`s.
    """

    arch: str = "sm_90"
    multiprocessors: int = 132
    shared_bytes: int = 48 * 1024
    cublas: bool = False
    aligned: bool = False


@dataclass(frozen=True)
class Product:
    """One call of cuBLAS: `c[b] = a[b] @ b[b]`, all matrices row-major.

    Attributes:
        dtype: of all three: float32, float64, float16 or bfloat16; halves accumulate in float.
        m, n, k: rows of c, columns of c, and the contracted size.
        batch: how many products.
        transposed: whether a (and b) lie in memory as their transposes.
        leading: elements from one row in memory to the next, of a, b and c.
        apart: elements from one matrix to the next, of a, b and c; 0: the same for all.
        offsets: elements before the first one, of a, b and c.
    """

    dtype: str
    m: int
    n: int
    k: int
    batch: int
    transposed: tuple[bool, bool]
    leading: tuple[int, int, int]
    apart: tuple[int, int, int]
    offsets: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Block:
    """Statements in braces behind a head, such as `if (lane == 0)`."""

    head: str
    body: tuple[Line | Loop | Block, ...]
    comment: str = ""
    is_loop: bool = field(default=False, init=False)


@dataclass(frozen=True)
class CudaKernel:
    """One `__global__` function and how it is launched, or one call of the library.

    Attributes:
        name: its name in CUDA, `kernel_3` or, for several of one step, `kernel_3_combine`.
        summary: comment lines above it: what it computes, and the Python lines.
        parameters: its buffers, `const T *__restrict__`, or `T *` where the planner says that they
            are written.
        body: lines and loops of the function, where the template lays them out; or empty, with
            `text`.
        index: the type of the loops' variables: "int", or "int64_t" where sizes are large or vary.
        text: the whole function, rendered by a planner of its own.
        arguments: names of the buffers passed, one per parameter; "status" comes last where
            `uses_status`.
        grid, block, shared: the launch; shared memory in bytes, beside what the text declares.
        product: a call of cuBLAS in the place of a kernel; `arguments` are then a, b and c.
        nbytes, ops, uses_status, names, scratch: as in `codegen.plan.KernelPlan`.
    """

    name: str
    summary: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: tuple[Line | Loop | Block, ...] = ()
    index: str = "int"
    text: str = ""
    arguments: tuple[str, ...] = ()
    grid: Dim3 = (1, 1, 1)
    block: Dim3 = (256, 1, 1)
    shared: int = 0
    product: Product | None = None
    nbytes: int = 0
    ops: int = 0
    uses_status: bool = False
    names: tuple[tuple[str, str], ...] = ()
    scratch: tuple[Scratch, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where the runtime finds a buffer.

    `kind` is "input", "output", "arena" or "status"; `position` the index among the inputs or
    outputs, or the byte offset in the arena.
    """

    kind: str
    position: int = 0


@dataclass(frozen=True)
class Launch:
    """One launch, in order: the numbers (sizes that vary), then the pointers, are its arguments.

    `kernel` is empty where `product` is a call of cuBLAS.
    """

    kernel: str
    arguments: tuple[Place, ...]
    numbers: tuple[int, ...] = ()
    grid: Dim3 = (1, 1, 1)
    block: Dim3 = (1, 1, 1)
    shared: int = 0
    product: Product | None = None


@dataclass(frozen=True)
class CudaUnit:
    """The text of a module, its launches, and what its caller must know; plain data.

    Attributes:
        source: CUDA with comments, for people.
        code: CUDA without comments, for the compiler and the cache key; every kernel is
            `extern "C" __global__`. Empty where all launches are products.
        launches: in order, all in one stream. Inputs may begin at any element, unless the target
            says otherwise; outputs and the arena begin at a multiple of 16 bytes.
        arena_bytes: size of the temporaries, which start at a multiple of 256 bytes.
        temporaries: what they would take side by side.
        uses_status: whether launches write to a status of four int64: (0, ...) where all is well;
            (1, index, axis, size) for an index out of bounds; (2, ...) for a division by zero.
        nbytes: bytes moved, each kernel's buffers counted once.
        ops: operations, about.
    """

    source: str
    code: str
    launches: tuple[Launch, ...]
    arena_bytes: int
    temporaries: int
    uses_status: bool
    nbytes: int
    ops: int

    @property
    def kernels(self) -> int:
        """How many launches there are."""
        return len(self.launches)
