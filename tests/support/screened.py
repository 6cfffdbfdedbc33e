# SPDX-License-Identifier: GPL-2.0-or-later
"""A pjsip endpoint whose messages are screened by the user of the Request-URI, as a process.

Prints its ports, then what each request on ``ask`` was seen as, one JSON object a line; ends when
its standard input does, and prints how many messages could not be decided on.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pjsua2 as pj

from gateway.log import set_up_logging
from gateway.sip import SipSettings, library
from gateway.sip.library import LogWriter, configure_media, endpoint_config
from gateway.sip.signalling import DROP, PASS, Decision, ReceivedMessage, Signalling


def tell(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def user_of(received: ReceivedMessage) -> str:
    return received.request_uri.partition(":")[2].partition("@")[0]


class AccessControl:
    """Decides as the called user says."""

    signalling: Signalling
    kept: ReceivedMessage | None = None

    def on_message(self, received: ReceivedMessage) -> Any:
        user = user_of(received)
        if received.status:
            tell(response=received.status, method=received.method)
            return Decision(503) if received.status == 491 else PASS
        if user == "ask":
            tell(
                seen=[
                    *(received.source, received.port, received.transport, received.local),
                    *(received.method, received.status, received.in_dialog),
                ],
                message=received.message.decode("latin-1"),
                body=received.body.decode("latin-1"),
                headers={name: self.signalling.headers(name) for name in ("Via", "x-two", "s")},
            )
        if user.startswith("reply-"):
            code, *rest = user.removeprefix("reply-").split("-")
            return Decision(int(code), (("X-One", "1"), ("X-Two", "2")), " ".join(rest))
        wrong: dict[str, Any] = {
            "none": None,
            "true": True,
            "short": (200,),
            "code-99": Decision(99),
            "code-big": Decision(1 << 40),
            "header-int": Decision(403, ((1, 2),)),  # type: ignore[arg-type]
            "header-line": Decision(403, (("X-One", "1\r\nX-Two: 2"),)),
            "reason-line": Decision(403, (), "No\r\nX-Two: 2"),
            "surrogate": Decision(403, (), "\udcff"),
        }
        if user in wrong:
            return wrong[user]
        if user == "raise":
            raise ValueError(user)
        if user == "exit":
            raise SystemExit(3)
        return DROP if user == "drop" else PASS

    def on_request(self, received: ReceivedMessage) -> Any:
        if user_of(received) == "second-raise":
            raise ValueError
        return Decision(404) if user_of(received) == "second" else PASS


def main() -> None:
    """Serve until standard input ends."""
    set_up_logging("json", "warning", None, ())
    library.silence_log()
    settings = SipSettings(listen=(), log_level=0)
    endpoint, writer = pj.Endpoint(), LogWriter()
    endpoint.libCreate()
    config = endpoint_config(settings, writer)
    configure_media(config.medConfig, settings)
    endpoint.libInit(config)
    endpoint.audDevManager().setNullDev()
    transport = pj.TransportConfig()
    transport.boundAddress = "127.0.0.1"
    ports = [
        int(
            endpoint.transportGetInfo(endpoint.transportCreate(kind, transport)).localName.split(
                ":"
            )[-1]
        )
        for kind in (pj.PJSIP_TRANSPORT_UDP, pj.PJSIP_TRANSPORT_TCP)
    ]
    account_config = pj.AccountConfig()
    account_config.idUri = f"sip:screen@127.0.0.1:{ports[0]}"
    account = pj.Account()
    account.create(account_config)
    endpoint.libStart()
    screen = AccessControl()
    signalling = screen.signalling = Signalling(screen.on_message, screen.on_request)
    signalling.open()
    answers: list[tuple[int, int]] = []
    signalling.on_options = lambda token, status: answers.append((token, status))
    tell(ports=ports)
    orders: list[str] = []
    over = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            orders.append(line.strip())
        over.set()

    threading.Thread(target=read, daemon=True).start()
    while not over.is_set():
        endpoint.libHandleEvents(5)
        while orders:
            token = len(answers) + 7
            status = signalling.send_options(account.getId(), orders.pop(0), token)
            if status:
                tell(options=[token, status])
        while answers:
            tell(options=answers.pop(0))
    try:
        outside = signalling.headers("Via")
    except RuntimeError as error:
        outside = (str(error),)
    tell(failures=signalling.failures, outside=outside, threads=threading.active_count())
    account.shutdown()
    endpoint.libDestroy()
    signalling.close()
    signalling.close()
    for held in (account, endpoint, writer):
        held.this.disown()


if __name__ == "__main__":
    main()
