"""Whether a function of LMCache's that is to be wrapped is still the one that was tested."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard


def takes(function: Any, parameters: Sequence[str]) -> TypeGuard[Callable[..., Any]]:
    """Whether it is there, and has these parameters, in this order."""
    return function is not None and [*inspect.signature(function).parameters] == [*parameters]
