"""The device double, loaded as code of tracegrad's own, which captures do not look into."""

from __future__ import annotations

import sys
import types
from pathlib import Path


def _loaded() -> types.ModuleType:
    path = Path(__file__).with_name("device_double.py")
    module = types.ModuleType("device_double")
    sys.modules["device_double"] = module
    code = compile(path.read_text(encoding="utf-8"), "<tracegrad device double>", "exec")
    exec(code, module.__dict__)
    return module


doubled = _loaded().doubled
