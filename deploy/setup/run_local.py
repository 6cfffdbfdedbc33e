# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the emulator and the gateway up until Ctrl-C: ``make run``.

The example's configuration gets an address on this machine for the console and calls from the
browser, with a key that holds for this run.

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

from gateway.api.backend import hash_of, new_token
from gateway.config import Config, ConfigError
from gateway.dialplan import Dialplan
from gateway.planning.check import load_all

EMULATOR_UP_SECONDS = 20.0
"""For its imports and the voice's data on a slow machine."""
EMULATOR_DOWN_SECONDS = 5.0

CONSOLE_PORT = 8080
"""Another one where it is taken."""
BROWSER_CALLS = 2
"""Calls from the browser at a time."""


@click.command(help=__doc__)
@click.option("-c", "config", type=click.Path(path_type=Path), default=Path("gateway.toml"))
def main(config: Path) -> None:
    """Run both; the exit status is the gateway's."""
    key = _open_console()
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
        status = _run_gateway(config, settings, dialplan, key)
    finally:
        if emulator is not None:
            _stop(emulator)
    sys.exit(status)


def _start(*arguments: str, **environ: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, **environ})


def _open_console() -> str:
    """Set what gateway.toml asks of the environment for the console; return the key of this run."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", CONSOLE_PORT))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    key = new_token()
    os.environ.setdefault("GATEWAY_CONSOLE", f"{host}:{port}")
    os.environ.setdefault("GATEWAY_BROWSER_CALLS", str(BROWSER_CALLS))
    os.environ["GATEWAY_KEY_HASH"] = hash_of(key)
    return key


def _where_to_call(settings: Config, dialplan: Dialplan) -> str:
    """Say how a first call gets in, by SIP."""
    if settings.trunk and settings.access.unknown_sources != "allow":
        names = ", ".join(trunk.name for trunk in settings.trunk)
        return f"The gateway listens. Only calls of trunks get in ({names}): see docs/trunks.md."
    listen = settings.sip.listen
    address = next((one for one in listen if one.transport == "udp"), listen[0])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    host = f"[{host}]" if ":" in host else host
    how = "" if address.transport == "udp" else f";transport={address.transport}"
    numbers = _numbers(dialplan)
    uri = f"sip:{numbers[0]}@{host}:{address.port}{how}"
    more = f" Other numbers: {', '.join(dict.fromkeys(numbers[1:]))}." if numbers[1:] else ""
    return f"Call {uri} from a softphone.{more} Ctrl-C ends calls and exits."


def _numbers(dialplan: Dialplan) -> list[str]:
    """Return the numbers that routes name as such; 100 where none does."""
    patterns = [route.to.pattern for route in dialplan.routes if route.enabled and route.to]
    found = []
    for one in patterns:
        if match := re.fullmatch(r"\^\(?((\\\+)?\w+(\|(\\\+)?\w+)*)\)?\$", one):
            found += [number.replace("\\", "") for number in match[1].split("|")]
    return found or ["100"]


def _where_to_look(settings: Config, dialplan: Dialplan, key: str) -> str:
    """Say where the console is, and with the key of this run how to call from it; "" for none."""
    if settings.api.listen is None:
        return ""
    address = f"http://{settings.api.listen}/console/"
    if not settings.api.browser_calls or hash_of(key) not in {
        one.hash for one in settings.api.token
    }:
        return f"The console: {address}"
    return f"Or call from the browser: {address}#/key/{key}/call/{_numbers(dialplan)[0]}"


def _run_gateway(config: Path, settings: Config, dialplan: Dialplan, key: str) -> int:
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
                if b"READY=1" in ready.recv(4096) and not asked:
                    click.echo(_where_to_call(settings, dialplan))
                    if console := _where_to_look(settings, dialplan, key):
                        click.echo(console)
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
