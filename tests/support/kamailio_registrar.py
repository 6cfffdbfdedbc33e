# SPDX-License-Identifier: GPL-2.0-or-later
"""Kamailio as registrar with digest, that can be started late and asked what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from tests.interop.lab import ports

WITHIN_S = 20.0
MODULES = Path("/usr/lib/x86_64-linux-gnu/kamailio/modules")

_CONFIG = """\
#!KAMAILIO
debug=2
log_stderror=yes
fork=yes
children=1
tcp_children=1
auto_aliases=no
listen=udp:127.0.0.1:{port}
listen=tcp:127.0.0.1:{port}
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "auth.so"
loadmodule "xlog.so"
modparam("usrloc", "db_mode", 0)
modparam("registrar", "min_expires", 2)
modparam("registrar", "max_expires", {expires})
modparam("auth", "algorithm", "{algorithm}")

request_route {{
    xlog("L_WARN", "SAW $rm\\n");
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("lab", "{secret}", "0")) {{
            www_challenge("lab", "1");
            exit;
        }}
        xlog("L_WARN", "SAVED expires=$hdr(Expires) contact=$ct header=$hdr(X-Account)\\n");
        save("location");
        exit;
    }}
    if (is_method("OPTIONS")) {{
        sl_send_reply("200", "OK");
        exit;
    }}
    if (is_method("CANCEL") || has_totag()) {{
        t_relay();
        exit;
    }}
    if (!lookup("location")) {{
        sl_send_reply("404", "Not Here");
        exit;
    }}
    t_relay();
}}
"""


def program() -> str | None:
    """Where Debian's package put it, which may be off the PATH."""
    return shutil.which("kamailio", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def free_port() -> int:
    """A port that is free for UDP and TCP on 127.0.0.1, and stays so until it is used."""
    return ports.free_port("127.0.0.1")


class Registrar:
    """Not running until :meth:`start`; can be started again after :meth:`stop`."""

    def __init__(
        self, folder: Path, secret: str = "secret", algorithm: str = "MD5", expires: int = 3600
    ) -> None:
        self.port = free_port()
        self.lines: list[str] = []
        self._folder = folder / f"kamailio-{self.port}"
        self._folder.mkdir()
        (self._folder / "kamailio.cfg").write_text(
            _CONFIG.format(
                port=self.port,
                modules=MODULES,
                secret=secret,
                algorithm=algorithm,
                expires=expires,
            )
        )
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pulse = asyncio.Event()

    async def start(self) -> None:
        """Run it. What it needs until it answers is up to who registers."""
        found = program()
        assert found is not None
        self._process = await asyncio.create_subprocess_exec(
            *(found, "-DD", "-E", "-m", "32", "-M", "4", "-Y", str(self._folder)),
            *("-f", str(self._folder / "kamailio.cfg")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """End it and its children; by itself it would wait a minute for some of them."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self._reader is not None:
            await self._reader
        self._process = None

    async def saw(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The ``count``-th line of its script that matches, waited for."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    found = [m for line in self.lines if (m := re.search(pattern, line))]
                    if len(found) >= count:
                        return found[count - 1]
                    self._pulse.clear()
                    await self._pulse.wait()
        except TimeoutError:
            raise AssertionError(f"no {pattern} in {self.lines[-20:]}") from None

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            _, script, said = raw.decode("utf-8", "replace").partition("<script>: ")
            if script:
                self.lines.append(said.rstrip())
                self._pulse.set()
