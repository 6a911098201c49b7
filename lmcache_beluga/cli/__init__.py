"""The ``beluga`` command. It needs the extra ``cli``; the rest of the package does not need it."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run ``beluga`` with the process's arguments; does not return."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        print(
            f"beluga: error: the command needs {' and '.join(missing)}: "
            "pip install 'lmcache-beluga[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from lmcache_beluga.cli.root import beluga

    beluga(prog_name="beluga")
