# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile input at length: ``python -m tests.load.hostile``.

One gateway is sent mutated SIP messages, RTP and RTCP packets and realtime events, in rounds.
Beside each round one call talks, and has to hear every frame. What is sent follows from ``--seed``.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.dialog import DialogCall, Sdp, answered, dialog_call
from tests.support.harness import GatewayStack
from tests.support.listening import Spoken, assert_continuous
from tests.support.mutations import mutated, rtcp, rtp

SIP_AT_A_TIME, SIP_PAUSE_S = 8, 0.02
RTP_AT_A_TIME, RTP_PAUSE_S = 20, 0.01
EVENTS_AT_A_TIME, EVENTS_PAUSE_S = 10, 0.02
"""Messages sent together and the pause behind them: about what one sending process can do."""

METHODS = ("INVITE", "INVITE", "OPTIONS", "REGISTER", "INFO", "MESSAGE", "SUBSCRIBE", "REFER")
INSIDE = ("INVITE", "UPDATE", "INFO", "ACK", "PRACK", "OPTIONS", "NOTIFY", "REFER", "MESSAGE")

ROUTE = """
[[route]]
name = "hostile"
to = "^hostile$"
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/realtime"
"""

_ITEM = {"id": "item_1", "object": "realtime.item", "type": "message", "role": "assistant"}
_RESPONSE = {"id": "resp_1", "object": "realtime.response", "status": "in_progress", "output": []}
_PART = {"response_id": "resp_1", "item_id": "item_1", "output_index": 0, "content_index": 0}
EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "input_audio_buffer.speech_started", "audio_start_ms": 10, "item_id": "item_u"},
    {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": 900, "item_id": "item_u"},
    {"type": "input_audio_buffer.committed", "item_id": "item_u", "previous_item_id": None},
    {"type": "conversation.item.added", "item": _ITEM, "previous_item_id": None},
    {"type": "conversation.item.done", "item": _ITEM, "previous_item_id": None},
    {"type": "conversation.item.truncated", "item_id": "item_1", "content_index": 0,
     "audio_end_ms": 20},
    {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_u",
     "content_index": 0, "transcript": "hello", "usage": {"type": "duration", "seconds": 1}},
    {"type": "response.created", "response": _RESPONSE},
    {"type": "response.output_item.added", "response_id": "resp_1", "output_index": 0,
     "item": _ITEM},
    {"type": "response.content_part.added", **_PART, "part": {"type": "audio"}},
    {"type": "response.output_audio.delta", **_PART, "delta": "f39/f39/f39/f39/"},
    {"type": "response.output_audio_transcript.delta", **_PART, "delta": "hi"},
    {"type": "response.output_audio_transcript.done", **_PART, "transcript": "hi"},
    {"type": "response.output_audio.done", **_PART},
    {"type": "response.function_call_arguments.delta", **_PART, "call_id": "c1", "delta": "{"},
    {"type": "response.function_call_arguments.done", **_PART, "call_id": "c1",
     "name": "end_call", "arguments": "{"},
    {"type": "response.output_item.done", "response_id": "resp_1", "output_index": 0,
     "item": {**_ITEM, "type": "function_call", "name": "nothing", "call_id": "c1",
              "arguments": "{}"}},
    {"type": "response.done", "response": {**_RESPONSE, "status": "completed",
                                           "usage": {"total_tokens": 3}}},
    {"type": "rate_limits.updated", "rate_limits": [{"name": "tokens", "limit": 1,
                                                     "remaining": 0, "reset_seconds": 1}]},
    {"type": "error", "error": {"type": "invalid_request_error", "code": "x", "message": "y",
                                "event_id": "e", "param": None}},
    {"type": "session.updated", "session": {"id": "sess_1", "type": "realtime"}},
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None,
    -1,
    1e308,
    2**70,
    "",
    "x" * 5000,
    [],
    {},
    [[[]]],
    True,
    "\ud800",
)


@dataclass
class Totals:
    """What was sent, and what the gateway has become."""

    sent: Counter[str] = field(default_factory=Counter)
    rounds: list[dict[str, int]] = field(default_factory=list)


def odd_event(chance: random.Random) -> str:
    """A server event with something wrong in it, as a text frame."""
    event = json.loads(json.dumps(chance.choice(EVENTS)))
    event["event_id"] = f"event_{chance.getrandbits(32)}"
    holder: dict[str, Any] = event
    while (inner := [v for v in holder.values() if isinstance(v, dict)]) and chance.random() < 0.5:
        holder = chance.choice(inner)
    name = chance.choice(list(holder) or ["type"])
    how = chance.random()
    if how < 0.3:
        holder.pop(name, None)
    elif how < 0.7:
        holder[name] = chance.choice(ODD_VALUES)
    text = json.dumps(event)
    if how > 0.85:
        text = mutated(chance, text.encode()).decode("utf-8", "replace")
    return text


def odd_messages(stack: GatewayStack, chance: random.Random, first: int) -> Iterator[bytes]:
    """SIP messages with something wrong in them, for ever."""
    host, port = stack.phone.address
    number = first
    while True:
        method = chance.choice(METHODS)
        body = Sdp().text(40000) if method == "INVITE" else ""
        lines = [
            f"{method} sip:nowhere@127.0.0.1:{stack.phone.gateway[1]} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bKh{number};rport",
            "Max-Forwards: 70",
            f'From: "A B" <sip:tester@{host}:{port}>;tag=t{number}',
            "To: <sip:nowhere@127.0.0.1>",
            f"Call-ID: campaign-{number}@test",
            f"CSeq: 1 {method}",
            f"Contact: <sip:tester@{host}:{port}>;expires=60",
            "Supported: timer, 100rel, replaces",
            "Session-Expires: 1800;refresher=uac",
            f"Record-Route: <sip:127.0.0.1:{port};lr>",
            'P-Asserted-Identity: "A" <sip:+4930@x>, <tel:+4930>',
            "Diversion: <sip:1@x>;reason=busy",
            'Authorization: Digest username="a", realm="b", nonce="c", uri="sip:x", response="0"',
            "Refer-To: <sip:a@127.0.0.1?Replaces=x%3Bto-tag%3Dy>",
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        yield mutated(chance, ("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        number += 1


class Campaign:
    """One gateway, and all that is done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.totals = Totals()
        self.events_left = 0
        self.stack: GatewayStack | None = None

    async def run(
        self, rounds: int, sip: int, packets: int, events: int, minutes: float, pause: float
    ) -> None:
        """All rounds; raises AssertionError with what went wrong."""
        async with serve(self._serve, "127.0.0.1", 0, compression=None, ping_interval=None) as ws:
            port = next(iter(ws.sockets)).getsockname()[1]
            stack = self.stack = GatewayStack(
                self.folder, routes=ROUTE.format(port=port), log_level="info"
            )
            await stack.start()
            began = time.monotonic()
            done = 0
            try:
                while done < rounds or time.monotonic() - began < minutes * 60:
                    await self._round(sip, packets, events)
                    done += 1
                    self._tell(done, time.monotonic() - began)
                    await asyncio.sleep(pause)
            finally:
                status = await stack.gateway.stop()
                await stack.phone.stop()
                await stack.emulator.stop()
            assert status == 0, f"exit status {status}"

    async def _round(self, sip: int, packets: int, events: int) -> None:
        stack = self.stack
        assert stack is not None
        stack.behave(vad="off", answer={"kind": "pattern", "seconds": 600, "burst": True})
        call = await answered(dialog_call(stack.phone, "greeted"))
        victim = await answered(dialog_call(stack.phone, "greeted"))
        await call.rtp.heard_bytes(4000)
        await asyncio.gather(
            self._send_messages(sip, victim), self._send_packets(packets, victim),
            self._send_events(events),
        )  # fmt: skip
        assert (await stack.phone.options()).code == 200
        heard = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > heard + 25)
        await stack.summary_at_end(call)
        assert_continuous(call.rtp.packets)
        (audio,) = (await stack.session_of(call)).sent_items.values()
        self.totals.sent["ms heard beside"] += Spoken(bytes(audio)).heard_ms(call.rtp.packets)
        victim.bye()
        for one in (call, victim):
            await stack.phone.forget(one)
        stack.phone.strays.clear()

    async def _send_messages(self, count: int, victim: DialogCall) -> None:
        stack, chance = self.stack, self.chance
        assert stack is not None
        outside = odd_messages(stack, chance, self.totals.sent["SIP messages"])
        for number in range(count):
            if chance.random() < 0.2:
                method = chance.choice(INSIDE)
                victim._sequence += 1
                body = victim.sdp.text(victim.rtp.port) if method in ("INVITE", "UPDATE") else ""
                message = mutated(chance, victim._inside(method, victim._sequence, (), body))
            else:
                message = next(outside)
            stack.phone.send(message)
            self.totals.sent["SIP messages"] += 1
            if number % SIP_AT_A_TIME == 0:
                await asyncio.sleep(SIP_PAUSE_S)

    async def _send_packets(self, count: int, victim: DialogCall) -> None:
        assert victim.rtp._peer is not None
        host, port = victim.rtp._peer
        for number in range(count):
            if self.chance.random() < 0.5:
                victim.rtp._socket.sendto(rtp(self.chance, number), (host, port))
            else:
                victim.rtp._rtcp.sendto(rtcp(self.chance), (host, port + 1))
            self.totals.sent["RTP and RTCP packets"] += 1
            if number % RTP_AT_A_TIME == 0:
                await asyncio.sleep(RTP_PAUSE_S)

    async def _send_events(self, count: int) -> None:
        stack = self.stack
        assert stack is not None
        self.events_left = count
        while self.events_left > 0:
            call = dialog_call(stack.phone, "hostile")
            call.invite()
            await call.until(lambda c: c.final is not None, what="an answer")
            if call.final is not None and call.final.code == 200:
                call.ack()
                left, stalled = self.events_left, 0
                while not call.byes and self.events_left > 0 and stalled < 50:
                    await asyncio.sleep(0.1)
                    stalled = stalled + 1 if self.events_left == left else 0
                    left = self.events_left
                if not call.byes:
                    call.bye()
            await stack.phone.forget(call)

    async def _serve(self, ws: ServerConnection) -> None:
        try:
            base = {"id": "sess_1", "object": "realtime.session", "type": "realtime"}
            await ws.send(json.dumps({"type": "session.created", "session": base}))
            wanted = json.loads(await ws.recv())["session"]
            told = {"type": "session.updated", "session": {**base, **wanted}}
            await ws.send(json.dumps(told))
            reader = asyncio.create_task(self._read(ws))
            try:
                while self.events_left > 0:
                    for _ in range(EVENTS_AT_A_TIME):
                        await ws.send(odd_event(self.chance))
                        self.events_left -= 1
                        self.totals.sent["realtime events"] += 1
                    await asyncio.sleep(EVENTS_PAUSE_S)
            finally:
                reader.cancel()
        except ConnectionClosed:
            pass

    async def _read(self, ws: ServerConnection) -> None:
        try:
            async for _ in ws:
                pass
        except ConnectionClosed:
            pass

    def _tell(self, done: int, seconds: float) -> None:
        assert self.stack is not None
        found = self.stack.gateway.resources()
        self.totals.rounds.append(found)
        sent = ", ".join(f"{count:,} {what}" for what, count in self.totals.sent.items())
        click.echo(f"round {done:3d} {seconds:6.0f} s  {found}  {sent}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--minutes", type=float, default=0.0, help="Go on for so long at least.")
@click.option("--sip", default=10_000, show_default=True, help="Mutated SIP messages a round.")
@click.option("--packets", default=10_000, show_default=True, help="RTP and RTCP packets a round.")
@click.option("--events", default=2_000, show_default=True, help="Realtime events a round.")
@click.option("--pause", default=0.0, help="Seconds between rounds.")
@click.option("--seed", default=4475, show_default=True)
def main(
    rounds: int, minutes: float, sip: int, packets: int, events: int, pause: float, seed: int
) -> None:
    """Send a gateway what is wrong, at length; exit 0 if it and the calls beside stayed whole."""
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), seed)
        try:
            asyncio.run(campaign.run(rounds, sip, packets, events, minutes, pause))
        except AssertionError as error:
            click.echo(f"FAILED: {error}")
            sys.exit(1)
        finally:
            for line in Counter(
                (one["event"], one.get("level")) for one in
                (campaign.stack.gateway.lines if campaign.stack else [])
            ).most_common(20):  # fmt: skip
                click.echo(f"  {line[1]:6d} {line[0][1]} {line[0][0]}")


if __name__ == "__main__":
    main()
