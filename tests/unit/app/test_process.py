# SPDX-License-Identifier: GPL-2.0-or-later
"""What is looked at each second, where nothing else can say that it has failed."""

from __future__ import annotations

import subprocess
import sys

HANGS = """
import asyncio, time
from gateway.app import process
from gateway.measures import Distribution
process.HUNG_SECONDS = 1.5

async def main():
    lag = Distribution(())
    process.Health(lambda: "", lambda: None, lambda well: None, lambda why: None, lag).start()
    await asyncio.sleep(0.1)
    time.sleep(60)

asyncio.run(main())
"""


def test_a_process_whose_event_loop_hangs_ends_and_says_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert 'File "<string>", line 11 in main' in done.stderr
