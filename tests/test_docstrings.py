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


PUBLIC = (
    "autograd", "autograd.anomaly_mode", "autograd.forward_ad", "autograd.function",
    "autograd.functional", "autograd.gradcheck", "autograd.graph", "autograd.profiler", "cuda", "func",
    "profiler", "utils.checkpoint",
)  # fmt: skip


def public_objects() -> dict[str, object]:
    """The functions and classes of the modules that differentiate and measure, by full name."""
    found = {}
    for name in PUBLIC:
        module = importlib.import_module(f"tracegrad.{name}")
        listed = getattr(module, "__all__", None)
        for key in listed or [n for n in dir(module) if not n.startswith("_")]:
            value = getattr(module, key)
            ours = str(getattr(value, "__module__", "")).startswith("tracegrad")
            if callable(value) and ours and (listed or value.__module__ == module.__name__):
                found[f"{name}.{key}"] = value
    return found


@pytest.mark.parametrize("name", public_objects())
def test_public_functions_have_an_example(name: str) -> None:
    text = public_objects()[name].__doc__ or ""
    assert "Example:\n" in text
    assert ">>> " in text.split("Example:")[1]
