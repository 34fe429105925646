"""The cases of the tests of C serve here too."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
for folder in ("codegen", "primitives", "passes"):
    sys.path.append(str(TESTS / folder))
