"""The part of a CUDA module before its kernels: types, and the helpers that the kernels call.

The helpers are those of the C prelude, `templates/prelude_*.c`, made `__device__` functions by the
textual rules of `on_device`; where CUDA needs another text, `templates/prelude_cuda.cu` has a section
of the same name. The text includes nothing, so that nvcc and NVRTC take it without a search for
headers, and a C++ compiler takes it with emulated intrinsics. Start reading at `prelude`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from tracegrad.codegen.prelude import helper_names, without_comments
from tracegrad.codegen.prelude import sections as written

# As glibc declares them on 64 bits: a second typedef of the same type is allowed.
_TYPES = {
    "int8_t": "signed char", "uint8_t": "unsigned char", "int16_t": "short",
    "uint16_t": "unsigned short", "int32_t": "int", "uint32_t": "unsigned int", "int64_t": "long",
    "uint64_t": "unsigned long",
}  # fmt: skip
_MACROS = {
    "TG_INF": "__int_as_float(0x7f800000)",
    "TG_NAN": "__int_as_float(0x7fc00000)",
    "TG_ALL": "0xffffffffu  // all lanes of a warp",
    "INT32_MIN": "(-2147483647 - 1)",
    "INT64_MIN": "(-9223372036854775807L - 1)",
}
_UNSIGNED = {"uint8_t", "uint16_t", "uint32_t", "uint64_t"}
_HOST_ONLY = {"tg_blas", "tg_threads", "tg_strayed"}  # beside the products, which call a BLAS
_GENERIC = re.compile(r"_Generic\(\(x\), float: (\w+), default: (\w+)\)\(x\)")
_ON_HOST = {"tg_load_float16": "tg_bits_to_float16", "tg_store_float16": "tg_float16_to_bits",
            "tg_store_bfloat16": "tg_bfloat16_to_bits"}  # fmt: skip
"""C helpers that only the text for a host's compiler still calls, under other names."""


def on_device(text: str) -> str:
    """A section of the C prelude as CUDA.

    Example:
        >>> on_device("static inline float tg_f(float x)")
        '__device__ inline float tg_f(float x)'
    """
    text = _GENERIC.sub(r"(sizeof(x) == 4 ? \1((float)(x)) : \2((double)(x)))", text)
    text = text.replace('(double)__builtin_nanf("")', "(double)TG_NAN")
    text = text.replace("__builtin_sqrt(", "sqrt(")
    return re.sub(r"^static inline ", "__device__ inline ", text, flags=re.MULTILINE)


@lru_cache(maxsize=1)
def sections() -> Mapping[str, str]:
    """All helper sections by name, as CUDA."""
    found: dict[str, str] = {}
    own = written("prelude_*.cu")
    for name, text in written().items():
        if name in _HOST_ONLY or name.startswith("tg_gemm"):
            continue
        if name in _ON_HOST:
            found[_ON_HOST[name]] = on_device(re.sub(rf"\b{name}\b", _ON_HOST[name], text))
        found[name] = on_device(own.get(name, text))
    return found | {name: on_device(text) for name, text in own.items()}


def prelude(kernels: str) -> str:
    """Everything that the text of the kernels needs before it.

    Example:
        >>> print(prelude("const int64_t i = blockIdx.x; x[i] = TG_INF;"))
        typedef long int64_t;
        <BLANKLINE>
        #define TG_INF __int_as_float(0x7f800000)
    """
    kernels = without_comments(kernels)
    known = sections()
    helpers = "\n\n".join(known[name] for name in helper_names(kernels, known))
    words = set(re.findall(r"\b[A-Za-z_]\w*\b", kernels + without_comments(helpers)))
    types = [f"typedef {c} {name};" for name, c in _TYPES.items() if name in words]
    if words & _UNSIGNED:  # helpers are written once for types with and without a sign
        types.append("#pragma nv_diag_suppress 186  // x < 0 of an unsigned x")
    macros = [f"#define {name} {text}" for name, text in _MACROS.items() if name in words]
    guarded = [
        f"#ifndef {line.split()[1]}\n{line}\n#endif" if "INT" in line.split()[1] else line
        for line in macros
    ]
    return "\n\n".join(p for p in ("\n".join(types), "\n".join(guarded), helpers) if p)
