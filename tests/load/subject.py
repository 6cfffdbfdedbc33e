# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: the gateway as its users run it, or the floor, as a process of its own."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .worker import Failed, Worker

START_SECONDS = 20.0
PORTS = 3000
"""RTP ports of a subject: two a call. Where they begin is drawn by lot, so that runs on the same
machine do not meet."""
FREE_PORTS = 500
"""Ports that nobody holds when a subject starts."""

_CONFIG = """\
[sip]
listen = ["udp:127.0.0.1:0"]
rtp_ports = [{low}, {high}]
max_calls = {max_calls}
[access]
calls_per_second = 0
max_concurrent_calls = 0
[realtime]
url = "{scheme}://127.0.0.1:{port}/v1/{path}"
model = "bulk"
{ca}
[dialplan]
folder = "dialplan"
[log]
format = "json"
level = "info"
[limits]
drain_timeout = 0
max_call_duration = {max_call_seconds}
{record}
"""

_WIDE = """
[[trunk]]
name = "wide"
peers = ["127.0.0.1"]
codecs = ["G722"]
"""

_ROUTE = """\
[[route]]
name = "{name}"
to = "^{name}$"
[route.realtime]
model = "{name}"
"""


def first_port() -> int:
    """The lowest RTP port of a subject: even, with free ports above, below those of the system."""
    for _ in range(50):
        low = 10000 + 2 * random.randrange(3500)
        if all(_is_free(port) for port in range(low, low + FREE_PORTS)):
            return low
    raise Failed("no RTP ports are free between 10000 and 20000")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            end.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Gateway:
    """``gateway run`` with the defaults of its configuration."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        up = self._wait_up()
        host, port = str(up["listen"][0]).split(":")[1:]
        self.address = (host, int(port))
        self.max_calls = int(up["max_calls"])
        self.pjsua2: dict[str, Any] = up["pjsua2"]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.worker.pid

    def _wait_up(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.worker.process.poll() is not None:
                raise Failed(f"the gateway ended at its start ({self.worker.tail()})")
            for line in self.log():
                if line.get("event") == "gateway.started":
                    return line
            time.sleep(0.05)
        raise Failed(f"the gateway did not come up ({self.worker.tail()})")

    def log(self) -> Iterator[dict[str, Any]]:
        """The lines of its log so far; what is no JSON becomes ``{"event": "?", "text": …}``."""
        with self.worker.log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return
                try:
                    yield json.loads(line)
                except ValueError:
                    yield {"event": "?", "text": line.strip()}

    def summaries(self) -> list[dict[str, Any]]:
        """The summary of each call that has ended."""
        return [line for line in self.log() if line["event"] == "call.summary"]


@contextmanager
def gateway(
    folder: Path,
    endpoint_port: int,
    max_calls: int,
    max_call_seconds: float = 3600.0,
    ca: Path | None = None,
    record: str = "",
    live: bool = False,
    codec: str = "pcmu",
) -> Iterator[Gateway]:
    """A gateway that joins its calls to the endpoint on ``endpoint_port``, by TLS with a ``ca``;
    ``record``, ``live`` and ``codec`` are those of :class:`tests.load.level.Conditions`."""
    (folder / "dialplan").mkdir(exist_ok=True)
    for name in ("bulk", "measured", "short"):
        (folder / "dialplan" / f"{name}.toml").write_text(_ROUTE.format(name=name))
    config = folder / "gateway.toml"
    low = first_port()
    config.write_text(
        _CONFIG.format(
            max_calls=max_calls,
            path="live/sessions" if live else "realtime",
            scheme="ws" if ca is None else "wss",
            port=endpoint_port,
            ca="" if ca is None else f'ca = "{ca}"',
            max_call_seconds=max_call_seconds,
            record=_recording(record) + (_WIDE if codec == "g722" else ""),
            low=low,
            high=low + PORTS - 1,
        )
    )
    with Worker.python(
        "gateway", "gateway", folder, "run", "-c", str(config), "--no-supervisor"
    ) as worker:
        yield Gateway(worker)


def _recording(record: str) -> str:
    if not record:
        return ""
    lines = ["[recording]", 'folder = "recordings"', 'mode = "always"']
    lines.append(f'format = "{record.removesuffix("+age")}"')
    if record.endswith("+age"):
        import pyrage

        lines.append(f'recipients = ["{pyrage.x25519.Identity.generate().to_public()}"]')
    return "\n".join(lines)


class Floor:
    """pjsip by itself."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        while not (line := worker.line(START_SECONDS)).startswith("port "):
            pass  # pjsip's first words
        self.address = ("127.0.0.1", int(line.split()[1]))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.worker.pid


@contextmanager
def floor(folder: Path, calls: int) -> Iterator[Floor]:
    """The loop-back in C for so many calls."""
    arguments = (str(calls), str(first_port()), str(PORTS))
    with Worker.python("floor", "tests.load.floor", folder, *arguments) as worker:
        yield Floor(worker)
