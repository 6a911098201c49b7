"""The serving benchmark is no package that is installed: it lies in a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "integration" / "benchmarks"))
