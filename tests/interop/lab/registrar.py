# SPDX-License-Identifier: GPL-2.0-or-later
"""Kamailio as a registrar with digest authentication, and a proxy that stays in every dialog.

Whatever asks for a password takes :data:`SECRET`; whoever is registered can be called.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import PROXY, free_port
from tests.interop.lab.process import Process

SECRET = "proxy-secret"
REALM = "lab"
BOOT_S = 60.0

_CONFIG = """\
#!KAMAILIO
debug=2
log_stderror=yes
fork=yes
children=2
auto_aliases=no
listen=udp:{host}:{port}
listen=tcp:{host}:{port}
server_header="Server: Lab Kamailio"
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "auth.so"
loadmodule "xlog.so"
modparam("usrloc", "db_mode", 0)
modparam("registrar", "min_expires", 10)
modparam("registrar", "max_contacts", 1)
modparam("auth", "algorithm", "{algorithm}")

request_route {{
    xlog("L_WARN", "$rm $ru from $si:$sp\\n");
    if (!mf_process_maxfwd_header("10")) {{
        sl_send_reply("483", "Too Many Hops");
        exit;
    }}
    if (is_method("CANCEL")) {{
        if (t_check_trans()) t_relay();
        exit;
    }}
    if (has_totag()) {{
        if (loose_route()) {{
            t_relay();
            exit;
        }}
        if (is_method("ACK") && t_check_trans()) {{
            t_relay();
            exit;
        }}
        sl_send_reply("404", "Not Here");
        exit;
    }}
    t_check_trans();
    if (is_method("OPTIONS")) {{
        sl_send_reply("200", "OK");
        exit;
    }}
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("{realm}", "{secret}", "0")) {{
            www_challenge("{realm}", "1");
            exit;
        }}
        save("location");
        exit;
    }}
    if (is_method("INVITE")) {{
        if (!pv_proxy_authenticate("{realm}", "{secret}", "0")) {{
            proxy_challenge("{realm}", "1");
            exit;
        }}
        consume_credentials();
    }}
    record_route();
    if (!lookup("location")) {{
        sl_send_reply("404", "Not Found");
        exit;
    }}
    t_relay();
}}
"""


class Registrar:
    """The proxy. Its address is chosen when it is made.

    Args:
        algorithm: of digest authentication, ``MD5`` or ``SHA-256`` (RFC 8760).
    """

    def __init__(self, root: Root, folder: Path, algorithm: str = "MD5") -> None:
        self.port = free_port(PROXY)
        self._folder = folder
        self._config = _CONFIG.format(
            host=PROXY,
            port=self.port,
            modules=root.libraries / "kamailio" / "modules",
            realm=REALM,
            secret=SECRET,
            algorithm=algorithm,
        )
        self._process = Process(
            [
                *root.command("usr/sbin/kamailio"),
                *("-f", str(folder / "kamailio.cfg"), "-Y", str(folder), "-DD", "-E"),
                *("-m", "32", "-M", "4"),
            ],
            folder,
            folder / "kamailio.log",
        )

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{PROXY}:{self.port}"

    async def start(self) -> None:
        """Run it until it listens."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "kamailio.cfg").write_text(self._config)
        await self._process.start()
        try:
            async with asyncio.timeout(BOOT_S):
                while not self._answers():
                    assert self._process.running, self._process.tail()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"Kamailio does not start: {self._process.tail()}") from None

    async def stop(self) -> None:
        """End it, and forget who was registered."""
        await self._process.stop()

    def tail(self, size: int = 6000) -> str:
        """The end of its log: a line for every request."""
        return self._process.tail(size)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((PROXY, self.port)) == 0
