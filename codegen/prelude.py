"""The part of a translation unit before its kernels: only the helpers that the kernels call.

Helpers live as plain C in `templates/prelude_*.c`, in sections. A section starts with a comment
whose first line is `/*[name] what it does`; it runs to the next such line. Helpers are called
`tg_...`; what a section calls is included before it. A heading `/*[name_{s} f32 f64] ...` is one
section per suffix, with `{s}`, `{T}`, `{U}` and `{f}` filled in (see `_FILL`). Functions of libm
get prototypes, with vector variants where the target's libmvec has them. Start at `prelude`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from tracegrad.codegen.plan import Target

_SECTION = re.compile(r"^/\*\[(\w+(?:\{s\})?)((?: \w+)*)\]", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_CALL = re.compile(r"\btg_\w+")
_WORD = re.compile(r"\b[a-z]\w*(?=\()")

# Functions of libm with one and two operands, and since when glibc's libmvec has them (2.22 had a
# few; 2.35 nearly all). See https://sourceware.org/glibc/wiki/libmvec.
_LIBMVEC_222 = {"sin", "cos", "exp", "log", "pow"}
_LIBMVEC_235 = {
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cosh", "erf", "erfc",
    "exp10", "exp2", "expm1", "hypot", "log10", "log1p", "log2", "sinh", "tan", "tanh",
}  # fmt: skip
_TWO = {
    "pow",
    "atan2",
    "hypot",
    "fmod",
    "copysign",
    "fmax",
    "fmin",
    "nextafter",
    "remainder",
    "ldexp",
}
_SCALAR = {"sqrt", "fabs", "floor", "ceil", "trunc", "rint", "nearbyint", "round", "fmod", "copysign",
           "lgamma", "tgamma", "fmax", "fmin", "fma", "nextafter"}  # fmt: skip
_LIBM = _LIBMVEC_222 | _LIBMVEC_235 | _SCALAR

# By suffix of a helper: its C type, the unsigned type in which its arithmetic wraps around, and
# the suffix of libm functions and literals.
_FILL = {
    "u8": ("uint8_t", "uint32_t", ""), "i8": ("int8_t", "uint32_t", ""),
    "i16": ("int16_t", "uint32_t", ""), "i32": ("int32_t", "uint32_t", ""),
    "i64": ("int64_t", "uint64_t", ""), "u32": ("uint32_t", "uint32_t", ""),
    "f32": ("float", "", "f"), "f64": ("double", "", ""),
}  # fmt: skip


def without_comments(text: str) -> str:
    """C text with its comments taken out."""
    return _COMMENT.sub("", text)


@lru_cache(maxsize=2)
def sections(files: str = "prelude_*.c") -> dict[str, str]:
    """All helper sections by name, in the order of the files that have such names."""
    found: dict[str, str] = {}
    folder = Path(__file__).parent / "templates"
    for path in sorted(folder.glob(files)):
        text = path.read_text(encoding="utf-8")
        marks = list(_SECTION.finditer(text))
        for k, mark in enumerate(marks):
            end = marks[k + 1].start() if k + 1 < len(marks) else len(text)
            body = "/* " + text[mark.end() : end].strip()
            for suffix in mark.group(2).split() or [""]:
                found[mark.group(1).replace("{s}", suffix)] = _instance(body, suffix)
    return found


def _instance(body: str, suffix: str) -> str:
    if not suffix:
        return body
    c_type, unsigned, libm = _FILL[suffix]
    for slot, text in (("{s}", suffix), ("{T}", c_type), ("{U}", unsigned), ("{f}", libm)):
        body = body.replace(slot, text)
    return body


def helper_names(text: str, known: Mapping[str, str] | None = None) -> list[str]:
    """The helpers that C text calls, directly or through others, dependencies first.

    `known` are the sections that there are: by default those of C.
    """
    known = sections() if known is None else known
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name in ordered or name not in known:
            return
        for called in _CALL.findall(known[name]):
            if called != name:
                visit(called)
        if name not in ordered:
            ordered.append(name)

    for name in _CALL.findall(text):
        visit(name)
    return ordered


def helpers_for(names: Iterable[str]) -> str:
    """The C text of the helpers called `names` and all that they need."""
    return "\n\n".join(sections()[n] for n in helper_names(" ".join(names)))


def prototypes(text: str, target: Target) -> str:
    """Prototypes of the libm functions that C text calls."""
    lines = []
    for name in sorted(set(_WORD.findall(text))):
        base, c_type = (name, "double") if name in _LIBM else (name[:-1], "float")
        if base not in _LIBM or (c_type == "float" and not name.endswith("f")):
            continue
        arguments = f"{c_type}, {c_type}" if base in _TWO else c_type
        if base == "fma":
            arguments = f"{c_type}, {c_type}, {c_type}"
        simd = "TG_SIMD " if _has_vector_form(base, target) else ""
        lines.append(f"{simd}extern {c_type} {name}({arguments});")
    if any(line.startswith("TG_SIMD") for line in lines):
        lines.insert(
            0,
            '#define TG_SIMD __attribute__((simd("notinbranch"), const))  // vector forms: libmvec',
        )
    return "\n".join(lines)


def _has_vector_form(base: str, target: Target) -> bool:
    version = target.vector_math
    if version is None:
        return False
    return (base in _LIBMVEC_222 and version >= (2, 22)) or (
        base in _LIBMVEC_235 and version >= (2, 35)
    )


def prelude(kernels: str, target: Target) -> str:
    """Everything that the text of the kernels needs before it.

    Example:
        >>> "extern float sinf(float);" in prelude("y = sinf(x);", Target())
        True
    """
    kernels = without_comments(kernels)
    helpers = helpers_for(_CALL.findall(kernels))
    parts = ["#include <stdint.h>"]
    if "TG_INF" in kernels + helpers or "TG_NAN" in kernels + helpers:
        parts.append('#define TG_INF __builtin_inff()\n#define TG_NAN __builtin_nanf("")')
    parts.append(prototypes(kernels + without_comments(helpers), target))
    parts.append(helpers)
    return "\n\n".join(p for p in parts if p)
