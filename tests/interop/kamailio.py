# SPDX-License-Identifier: GPL-2.0-or-later
"""A Kamailio with the configuration of ``deploy/kamailio``, and what it thinks of its workers."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.interop.lab.process import Process

DEPLOY = Path(__file__).parents[2] / "deploy" / "kamailio"
WITHIN_S = 30.0

_TARGET = re.compile(r"URI: (\S+)\s+FLAGS: (\w+)[^U]*?DUID: (\S+).*?DLGLOAD: (\d+)", re.DOTALL)

# One process: with more, a 180 may overtake the 200 that is sent right after it, and SIPp minds.
_LOCAL = """\
#!define LISTEN udp:{host}:{port}
#!define DISPATCHER_LIST "{folder}/dispatcher.list"
#!define CONTROL_SOCKET "unix:{folder}/control"
#!define PROBE_SECONDS 1
#!define PROCESSES 1
#!define LOG_TO_STDERR
{more}
"""


def program(name: str) -> str | None:
    """Where Debian's package has put ``kamailio`` or ``kamcmd``, which may be off the PATH."""
    return shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin")


@dataclass(frozen=True, slots=True)
class Target:
    """A worker as the dispatcher sees it."""

    uri: str
    flags: str
    """``AP`` takes calls and is probed; ``TP`` failed a probe; ``IP`` is out."""
    load: int
    """Calls that it counts there."""


class Kamailio:
    """The proxy.

    Args:
        folder: for its files.
        address: host and port to listen on.
        workers: ``host:port`` and most calls of each, in order; they are called w0, w1 and so on.
        more: further lines for ``kamailio-local.cfg``.
    """

    def __init__(
        self,
        folder: Path,
        address: tuple[str, int],
        workers: list[tuple[str, int]],
        more: str = "",
    ) -> None:
        self.address = address
        self._folder = folder
        self._control = f"unix:{folder}/control"
        host, port = address
        folder.mkdir()
        shutil.copy(DEPLOY / "kamailio.cfg", folder)
        local = _LOCAL.format(host=host, port=port, folder=folder, more=more)
        (folder / "kamailio-local.cfg").write_text(local)
        lines = [
            f"1 sip:{where} 0 0 duid=w{index};maxload={most}\n"
            for index, (where, most) in enumerate(workers)
        ]
        (folder / "dispatcher.list").write_text("".join(lines))
        command = [program("kamailio") or "kamailio", "-DD", "-f", str(folder / "kamailio.cfg")]
        command += ["-Y", str(folder), "-w", str(folder), "-m", "32", "-M", "4"]
        self.process = Process(command, folder, folder / "kamailio.log")

    async def start(self) -> None:
        """Run it, until it has probed all workers."""
        await self.process.start()
        await self.until(lambda targets: all(t.flags == "AP" for t in targets), "all take calls")

    async def stop(self) -> None:
        """End it."""
        await self.process.stop()

    async def targets(self) -> list[Target]:
        """Its workers, w0 first; none while it starts."""
        command = [program("kamcmd") or "kamcmd", "-s", self._control, "dispatcher.list"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await process.communicate()
        found = {
            name: Target(uri, flags, int(load))
            for uri, flags, name, load in _TARGET.findall(output.decode())
        }
        return [found[name] for name in sorted(found)]

    async def until(self, condition: object, what: str) -> list[Target]:
        """Wait until ``condition`` holds for the workers; asked ten times a second."""
        assert callable(condition)
        targets: list[Target] = []
        try:
            async with asyncio.timeout(WITHIN_S):
                while not targets or not condition(targets):
                    assert self.process.running, self.process.tail()
                    await asyncio.sleep(0.1)
                    targets = await self.targets()
        except TimeoutError:
            tail = self.process.tail()
            raise AssertionError(f"never: {what}; {targets}\n{tail}") from None
        return targets
