"""Where a call is."""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a call is."""

    CONNECTING = auto()
    """180 is sent, or nobody was called yet: the session is being set up."""
    DIALLING = auto()
    """The callee is being called, and has not answered."""
    ANSWERED = auto()
    """200 is sent, its ACK has not come."""
    TALKING = auto()
    BRIDGED = auto()
    """Caller and somebody else talk with each other, through us."""
    ENDING = auto()
    """The ending is decided, the leg is not over yet."""
    FINISHED = auto()
