# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway, with a window: ``watched_gateway.py run -c …`` logs what it holds on SIGRTMIN."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
from collections import Counter
from types import FrameType

from gateway.cli import main

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


class _Heap(ctypes.Structure):
    """``struct mallinfo2`` (mallinfo(3))."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    )


def used_kib() -> int:
    """KiB that malloc has given out and not got back, without what it holds for later."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Heap
    heap = libc.mallinfo2()
    return int(heap.uordblks + heap.hblkhd) // 1024


def tell(_number: int, _frame: FrameType | None) -> None:
    """One JSON line on standard error: tasks, threads, and objects that belong to calls."""
    gc.collect()
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
    line = {
        "event": "watch",
        "level": "info",
        "tasks": sorted(task.get_name() for task in asyncio.all_tasks()),
        "python_threads": threading.active_count(),
        "used_kib": used_kib(),
        "blocks": sys.getallocatedblocks(),
        "objects": {name: kinds[name] for name in WATCHED},
    }
    # Not by sys.stderr: this may interrupt a write to it, which raises.
    os.write(sys.stderr.fileno(), json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGRTMIN, tell)
    main()
