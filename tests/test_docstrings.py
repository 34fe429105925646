"""The examples in docstrings are run, module by module."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import tracegrad


def modules() -> list[str]:
    """Every module of the package but the command line's."""
    found = pkgutil.walk_packages(tracegrad.__path__, "tracegrad.")
    for folder in ("ir", "codegen", "runtime", "tracer"):
        package = importlib.import_module(f"tracegrad.{folder}")
        found = [*found, *pkgutil.walk_packages(package.__path__, f"tracegrad.{folder}.")]
    return sorted({m.name for m in found if not m.name.endswith("__main__")})


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert failed == 0


def test_every_layer_is_walked() -> None:
    layers = {name.split(".")[1] for name in modules()}
    assert {"ir", "codegen", "runtime", "tracer"} <= layers
