# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether somebody is there, asked before a call."""

from __future__ import annotations

import socket

from gateway.devtools.scripted_caller.run import nobody_listens
from tests.support.harness import closed_port


def test_a_port_that_nobody_listens_on() -> None:
    port = closed_port()  # the kernel would give one of its own away again
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", port))
        assert nobody_listens(f"sip:1@127.0.0.1:{port}") == "", "silence is no refusal"
    assert nobody_listens(f"sip:1@127.0.0.1:{port}") == f"127.0.0.1:{port}"
    assert nobody_listens(f"sip:127.0.0.1:{port}") == f"127.0.0.1:{port}"
    assert nobody_listens(f"sip:1@127.0.0.1:{port};transport=tcp") == ""
    assert nobody_listens("no address") == ""
