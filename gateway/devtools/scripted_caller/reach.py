"""Whether anybody is there to call: a refusal of the machine itself need not be waited out."""

from __future__ import annotations

import re
import socket

ANSWER_SECONDS = 0.15
"""How long the other machine has to say that nothing listens (ICMP port unreachable)."""

_TARGET = re.compile(r"sip:(?:[^@]*@)?(\[[^\]]+\]|[^:;?>]+)(?::(\d+))?", re.IGNORECASE)


def nobody_listens(uri: str) -> str:
    """``host:port`` when that machine says that nothing listens there over UDP; else empty.

    What goes out is a keep-alive (RFC 5626 section 3.5.1), which no SIP element takes for a call.
    """
    target = _TARGET.match(uri)
    if target is None or re.search(r";transport=(?!udp)", uri, re.IGNORECASE):
        return ""
    host, port = target[1].strip("[]"), int(target[2] or 5060)
    try:
        family, kind, number, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, number) as probe:
            probe.settimeout(ANSWER_SECONDS)
            probe.connect(address)
            probe.send(b"\r\n\r\n")
            probe.recv(1)
    except ConnectionRefusedError:
        return f"{target[1]}:{port}"
    except OSError:
        return ""
    return ""
