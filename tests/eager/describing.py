"""How the answers of PyTorch in `answers/*.json` are written down.

A row is a program and its answer. The last line of the program is an expression; its value is
described by type, text, dtype, shape, strides and place in the tape, an error by its built-in class
and text. dtypes print under our name. Start reading at `answer`.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import json
import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import tracegrad as tg

FOLDER = Path(__file__).parent / "answers"
# PyTorch's dtypes have shorter names, so a line that ends in one may be broken in another place
_SUFFIX = re.compile(r",(\n|\\n| )\s*(dtype|grad_fn|requires_grad)=")


def rows(topic: str) -> list[list[str]]:
    """The programs and answers about a topic."""
    return json.loads((FOLDER / f"{topic}.json").read_text())


def normal(text: str) -> str:
    """Text without what differs for the length of a name or from run to run."""
    text = re.sub(r" at 0x[0-9a-f]+", " at 0x", text)
    return _SUFFIX.sub(r", \2=", text) if "dtype=" in text else text


def described(value: Any) -> str:
    """What the answer says of a value."""
    if isinstance(value, tg.Tensor):
        place = f"{value.dtype} {tuple(value.shape)} {value.stride()}"
        return f"{normal(repr(value))} | {place} rg={value.requires_grad} leaf={value.is_leaf}"
    if type(value) in (list, tuple):
        return f"{type(value).__name__}({', '.join(map(described, value))})"
    if isinstance(value, np.ndarray):
        return f"ndarray {value.dtype} {value.shape} {value.tolist()}"
    return f"{type(value).__name__.replace('DType', 'dtype')} {normal(repr(value))}"


def answer(program: str) -> str:
    """Run a program from a fresh state and describe its value or error."""
    names = {"tg": tg, "np": np, "copy": copy, "pickle": pickle, "math": math}
    tree = ast.parse(program)
    *statements, last = tree.body
    if isinstance(last, ast.Expr):
        final: Any = compile(ast.Expression(last.value), program, "eval")
    else:
        statements, final = tree.body, None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exec(compile(ast.Module(statements, []), program, "exec"), names)
            return "done" if final is None else described(eval(final, names))
    except Exception as error:  # the text is compared
        built_in = next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
        return f"{built_in}: {normal(str(error))}"
    finally:
        tg.set_default_dtype(tg.float32)
        tg.set_printoptions(profile="default")
