"""``python -m lmcache_beluga`` is the ``beluga`` command."""

from __future__ import annotations

from lmcache_beluga.cli import main

main()
