# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for a gateway worker, to try a supervisor with: what it does is its first argument.

``up`` reports that it is up and ends with 0 at SIGTERM; ``deaf`` ignores SIGTERM; ``crash`` kills
itself once up; ``broken`` ends with 1 before that; ``orphan FILE`` writes the file when its
supervisor is gone, ``renew FILE`` at SIGHUP (``up`` or ``starting``: what it was then), ``late
FILE`` too, which is up once FILE.go exists; ``stays`` closes the socket, and does not end.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    """Behave."""
    what = sys.argv[1]
    supervisor_link = socket.socket(fileno=int(sys.argv[sys.argv.index("--supervisor-link") + 1]))
    if what == "broken":
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "deaf" else lambda *_: sys.exit(0))
    state = "starting"
    if what in ("renew", "late"):
        signal.signal(signal.SIGHUP, lambda *_: Path(sys.argv[2]).write_text(state))
    while what == "late" and not Path(f"{sys.argv[2]}.go").exists():
        time.sleep(0.01)
    state = "up"
    supervisor_link.send(b"up\n")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "stays":
        supervisor_link.close()
        time.sleep(60)
    supervisor_link.recv(1)  # until the supervisor is gone
    if what == "orphan":
        Path(sys.argv[2]).touch()


if __name__ == "__main__":
    main()
