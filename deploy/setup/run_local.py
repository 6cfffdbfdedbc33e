"""Keeps the emulator and the gateway up until Ctrl-C: ``make run``.

The emulator is started only when the configuration names a server on this machine and nothing
listens there yet. Both run in sessions of their own, so that Ctrl-C reaches this process alone and
the emulator outlives the calls that the gateway ends.
"""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from gateway.config import ConfigError, load_config

EMULATOR_UP_SECONDS = 20.0
"""For its imports and the voice's data on a slow machine."""
EMULATOR_DOWN_SECONDS = 5.0


@click.command(help=__doc__)
@click.option("-c", "config", type=click.Path(path_type=Path), default=Path("gateway.toml"))
def main(config: Path) -> None:
    """Run both; the exit status is the gateway's."""
    try:
        settings = load_config(config)
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
    address = settings.sip.listen[0]
    host = f"[{address.host}]" if ":" in address.host else address.host
    tls = ";transport=tls" if address.transport == "tls" else ""
    uri = f"sip:100@{host}:{address.port}{tls}"
    click.echo(f"Call {uri} from a softphone. Ctrl-C ends calls and exits.")
    if settings.trunk and settings.access.unknown != "allow":
        names = ", ".join(trunk.name for trunk in settings.trunk)
        click.echo(f"Only calls of trunks get in ({names}): see docs/trunks.md.")
    try:
        status = _run_gateway(config)
    finally:
        if emulator is not None:
            _stop(emulator)
    sys.exit(status)


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("gateway")), *arguments]
    return subprocess.Popen(command, start_new_session=True)


def _run_gateway(config: Path) -> int:
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
    gateway = _start("run", "-c", str(config))
    if asked:
        gateway.send_signal(signal.SIGTERM)
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
