# SPDX-License-Identifier: GPL-2.0-or-later
"""A BYE of the gateway's that the other side does not take, or no longer needs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gateway.api.client import ask
from tests.support.dialog import Answerer, DialogCall, Sdp, answered, dialog_call
from tests.support.harness import GatewayStack, closed_port
from tests.support.rtp_end import NOBODY
from tests.support.sip_phone import Message
from tests.support.site_under_test import ANYBODY, site

WORLD = {"more": '[control]\nsocket = "gateway.sock"\n'}


def request(method: str, uri: str, port: int, sequence: int, to: str, body: str = "") -> bytes:
    """One request of the telephone's, which says it can be reached at a port that it cannot."""
    lines = [
        f"{method} {uri} SIP/2.0",
        f"Via: SIP/2.0/TCP 127.0.0.1:{port};branch=z9hG4bK{method}{sequence};rport",
        "Max-Forwards: 70",
        f"From: <sip:gone@127.0.0.1:{port}>;tag=here",
        f"To: {to}",
        "Call-ID: gone@test",
        f"CSeq: {sequence} {method}",
        f"Contact: <sip:gone@127.0.0.1:{port};transport=tcp>",
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


async def answer_to_invite(reader: asyncio.StreamReader) -> str:
    """The head of the 200."""
    while True:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode()
        length = re.search(r"(?im)^Content-Length:\s*(\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        if head.startswith("SIP/2.0 200"):
            return head


async def test_a_bye_that_reaches_nobody_is_said(runner: object, own_folder: Path) -> None:
    listen = ("udp:127.0.0.1:0", "tcp:127.0.0.1:0")
    async with site(own_folder, listen=listen, routes=ANYBODY) as gateway:
        port = gateway.port("tcp")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        gone = closed_port()
        uri = f"sip:1@127.0.0.1:{port};transport=tcp"
        sdp = Sdp().text(NOBODY)
        writer.write(request("INVITE", uri, gone, 1, f"<{uri}>", sdp))
        head = await answer_to_invite(reader)
        to = re.search(r"(?im)^To:\s*(.+?)\r?$", head)
        contact = re.search(r"(?im)^Contact:\s*<(.+?)>", head)
        assert to
        assert contact
        writer.write(request("ACK", contact[1], gone, 1, to[1]))
        await gateway.gateway.wait("call.confirmed", call="gone@test")
        writer.close()
        await writer.wait_closed()
        socket = gateway.folder / "control"
        await asyncio.to_thread(ask, socket, "hangup", call="gone@test")
        line = await gateway.gateway.wait("sip.bye_undelivered", call="gone@test")
        assert line["error"] == "cannot be sent"
        summary = await gateway.gateway.wait("call.summary", call="gone@test")
        assert summary["bye_undelivered"] == line["error"]
        assert summary["ending"]["why"] == "operator"


def answers_bye(code: int, transmission: int = 1) -> Answerer:
    """A telephone that answers the BYE's n-th transmission with ``code``; 0 for never."""

    def answer(call: DialogCall, message: Message) -> bool:
        if message.method != "BYE":
            return False
        if code and len(call.byes) >= transmission:
            call.respond(message, code)
        return True

    return answer


@pytest.mark.parametrize(
    ("code", "transmission", "undelivered"),
    [
        (200, 2, ""),
        (481, 1, ""),
        (500, 1, "refused with 500"),
        (0, 1, "no answer within 3 s"),
    ],
)
async def test_how_a_bye_is_answered(
    world: GatewayStack, code: int, transmission: int, undelivered: str
) -> None:
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 0.3})
    call = dialog_call(world.phone, "greeted")
    call.answerer = answers_bye(code, transmission)
    await answered(call)
    await world.gateway.wait("call.confirmed", call=call.call_id)
    socket = world.gateway.config.parent / "gateway.sock"
    await asyncio.to_thread(ask, socket, "hangup", call=call.call_id)
    record = await world.record(call)
    assert record["bye_undelivered"] == undelivered
    assert record["ending"]["why"] == "operator"
    said = world.gateway.all("sip.bye_undelivered", call=call.call_id)
    assert [line["error"] for line in said] == ([undelivered] if undelivered else [])
