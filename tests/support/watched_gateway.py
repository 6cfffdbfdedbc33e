# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway, with a window: ``watched_gateway.py run -c …`` logs what it holds on SIGRTMIN."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import threading
from collections import Counter
from types import FrameType

from gateway.cli.main import main

WATCHED = (
    "CallController",
    "CallMachine",
    "CallRecord",
    "Leg",
    "SipCall",
    "Session",
    "CallAudio",
    "Task",
)


def tell(_number: int, _frame: FrameType | None) -> None:
    """One JSON line on standard error: tasks, threads, and objects that belong to calls."""
    gc.collect()
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
    line = {
        "event": "watch",
        "level": "info",
        "tasks": sorted(task.get_name() for task in asyncio.all_tasks()),
        "python_threads": threading.active_count(),
        "objects": {name: kinds[name] for name in WATCHED},
    }
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGRTMIN, tell)
    main()
