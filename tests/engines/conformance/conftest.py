from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process_surface import InProcessSurface
from l1_surface import L1Surface
from l2_surface import L2Surface
from surface import Surface

SURFACES: dict[str, Callable[[Path, Path, dict[str, Any]], Surface]] = {
    "in process": InProcessSurface,
    "l2": L2Surface,
    "l1": L1Surface,
}

Open = Callable[..., Surface]


@pytest.fixture(params=SURFACES)
def open_surface(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    pool: Path,
    host_of: Callable[[dict[str, Any]], dict[str, Any]],
) -> Iterator[Open]:
    """Attaches one more handle to the test's pool, through the surface under test; keywords are
    settings without ``beluga.``. All are closed at the end."""
    surfaces: list[Surface] = []
    numbers = itertools.count()

    def open_one(**settings: Any) -> Surface:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        own = host_of({f"beluga.{name}": value for name, value in settings.items()})
        surfaces.append(SURFACES[request.param](folder, pool, own))
        return surfaces[-1]

    yield open_one
    for surface in reversed(surfaces):
        surface.close()
