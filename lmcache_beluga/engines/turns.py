"""How quickly the threads of this process take turns."""

from __future__ import annotations

import sys

SWITCH_S = 0.0005


def take_turns_quickly() -> None:
    """Has a thread that computes give way after half a millisecond, not after Python's five.

    A thread that launches copies, or sends messages, lets others go on each time, and then has to
    wait for its turn: in a burst of requests, behind one that hashes their prompts.
    """
    sys.setswitchinterval(SWITCH_S)
