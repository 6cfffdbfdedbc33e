# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the emulator and the gateway up until Ctrl-C: ``make run``.

The emulator is started only when the configuration names a server on this machine and nothing
listens there yet. Both run in sessions of their own, so that Ctrl-C reaches this process alone and
the emulator outlives the calls that the gateway ends.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from gateway.config import Config, ConfigError
from gateway.dialplan import Dialplan
from gateway.planning.check import load_all

EMULATOR_UP_SECONDS = 20.0
"""For its imports and the voice's data on a slow machine."""
EMULATOR_DOWN_SECONDS = 5.0


@click.command(help=__doc__)
@click.option("-c", "config", type=click.Path(path_type=Path), default=Path("gateway.toml"))
def main(config: Path) -> None:
    """Run both; the exit status is the gateway's."""
    try:
        settings, dialplan = load_all(config)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    url = settings.realtime.url
    emulator = None
    if settings.realtime.on_loopback and not _listens(url):
        emulator = _start("emulator", "--listen", urlsplit(url).netloc)
        if not _wait_until_listens(emulator, url):
            _stop(emulator)
            click.echo(f"the emulator did not come up at {url}", err=True)
            sys.exit(1)
    try:
        status = _run_gateway(config, settings, dialplan)
    finally:
        if emulator is not None:
            _stop(emulator)
    sys.exit(status)


def _start(*arguments: str, **environ: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, **environ})


def _where_to_call(settings: Config, dialplan: Dialplan) -> str:
    """Say how a first call gets in."""
    if settings.trunk and settings.access.unknown_sources != "allow":
        names = ", ".join(trunk.name for trunk in settings.trunk)
        return f"The gateway listens. Only calls of trunks get in ({names}): see docs/trunks.md."
    address = settings.sip.listen[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    host = f"[{host}]" if ":" in host else host
    tls = ";transport=tls" if address.transport == "tls" else ""
    patterns = [route.to.pattern for route in dialplan.routes if route.enabled and route.to]
    numbers = [found[1] for one in patterns if (found := re.fullmatch(r"\^(\w+)\$", one))]
    uri = f"sip:{numbers[0] if numbers else '100'}@{host}:{address.port}{tls}"
    more = f" Other numbers: {', '.join(dict.fromkeys(numbers[1:]))}." if numbers[1:] else ""
    return f"Call {uri} from a softphone.{more} Ctrl-C ends calls and exits."


def _run_gateway(config: Path, settings: Config, dialplan: Dialplan) -> int:
    gateway: subprocess.Popen[bytes] | None = None
    asked = 0

    def forward(_number: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            click.echo("Calls may end within drain_timeout; Ctrl-C again ends them now.", err=True)
        if gateway is not None:
            gateway.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, forward)
    signal.signal(signal.SIGTERM, forward)
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        ready.bind(f"{folder}/notify")  # told when calls are taken, as systemd is (sd_notify(3))
        ready.settimeout(0.2)
        gateway = _start("run", "-c", str(config), NOTIFY_SOCKET=f"{folder}/notify")
        if asked:
            gateway.send_signal(signal.SIGTERM)
        while gateway.poll() is None:  # reads to the end: a full socket is a warning in the log
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096):
                    click.echo(_where_to_call(settings, dialplan))
        status = gateway.wait()
    return 0 if asked and status == -signal.SIGTERM else abs(status)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(EMULATOR_DOWN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(url: str) -> bool:
    """Whether something answers there; asked with plain HTTP, which no server minds."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=1.0)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except OSError as error:
        return isinstance(error, TimeoutError)
    except http.client.HTTPException:
        return True
    finally:
        connection.close()
    return True


def _wait_until_listens(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + EMULATOR_UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _listens(url):
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    main()
