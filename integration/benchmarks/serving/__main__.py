"""Starts the harness: ``python integration/benchmarks/serving --help``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# As a folder that is given to Python, this is no package yet; the product's own modules may be
# installed, or lie in the same checkout.
sys.path[0] = str(HERE.parent)
sys.path.append(str(HERE.parents[2]))

if __name__ == "__main__":
    from serving.command import main

    main()
