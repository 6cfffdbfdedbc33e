# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own credentials: carriers that ask for them in each way, and who else asks (RFC 7616)."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from gateway.api.client import ask
from tests.calls.test_transfer_blind import outputs_of
from tests.support.digest_answer import HASHES
from tests.support.harness import GatewayStack
from tests.support.rtp_end import EVENT_PAYLOAD, NOBODY
from tests.support.sip_phone import Message, _parsed

PASSWORD = "a-secret-of-the-trunk"
SDP = "\r\n".join(
    [
        "v=0",
        "o=- 2 2 IN IP4 127.0.0.1",
        "s=-",
        "c=IN IP4 127.0.0.1",
        "t=0 0",
        f"m=audio {NOBODY} RTP/AVP 0 {EVENT_PAYLOAD}",
        f"a=rtpmap:{EVENT_PAYLOAD} telephone-event/8000",
        "",
    ]
)


@dataclass
class Ways:
    """How a carrier asks."""

    code: int = 407
    algorithm: str = "MD5"
    qop: str = '"auth"'
    """Empty for the digest of RFC 2069."""
    renewed: str = ""
    """How a nonce is replaced after the INVITE: stale, changed or nextnonce; empty if never."""
    realm: str = "carrier"
    registers: str = "registration"
    """The realm of REGISTER."""
    endless: str = ""
    """Each request is asked for a password again and again, with another nonce: stale (with
    stale=true), new or same; ``inside`` and one of these spares what is outside of dialogs."""
    open: bool = False
    """INVITEs need no password."""
    contact: tuple[str, int] | None = None
    """Where requests in the dialog are to go, if elsewhere."""
    laws: str = "0"
    """Payload numbers of the answer; of more than one, the gateway settles one by a new offer."""
    updates: bool = False
    """That offer may come by UPDATE (RFC 3311)."""


@dataclass
class Carrier(asyncio.DatagramProtocol):
    """Takes calls and registrations of who knows the password; keeps what came."""

    host: str = "127.0.0.1"
    ways: Ways = field(default_factory=Ways)
    taken: list[Message] = field(default_factory=list)
    asked: list[Message] = field(default_factory=list)
    """Requests that were challenged."""
    wrong: list[str] = field(default_factory=list)
    """Credentials that are not right."""
    nonce: str = "n0"
    _uses: dict[str, int] = field(default_factory=dict)
    _answered: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """The answer to each request, by its Via and CSeq: one that a busy machine answers too late
    comes again, and is no other."""
    _count: Iterator[int] = field(default_factory=itertools.count)
    _transport: Any = None
    _peer: Any = None
    pulse: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> Carrier:
        """Bind a free port."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, (self.host, 0))
        return self

    def begin(self, **ways: Any) -> None:
        """Ask like this from now on."""
        self.ways = Ways(**ways)
        self.nonce = f"{self.host}-{next(self._count)}"
        self._uses.clear()
        for kept in (self.taken, self.asked, self.wrong):
            kept.clear()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return cast(tuple[str, int], self._transport.get_extra_info("sockname")[:2])

    async def took(self, method: str) -> Message:
        """Wait until such a request was taken."""
        async with asyncio.timeout(20):
            while not (found := [m for m in self.taken if m.method == method]):
                self.pulse.clear()
                await self.pulse.wait()
        return found[0]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        """Give up the port."""
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        message = _parsed(data)
        if message.code or message.method in ("ACK", "?"):
            return  # "?": a keep-alive
        self._peer = addr
        if (answer := self._answered.get(_transaction(message))) is not None:
            self._transport.sendto(answer, addr)
            return
        proxy = self.ways.code == 407 and message.method != "REGISTER"
        given = message.headers.get("proxy-authorization" if proxy else "authorization", "")
        realm = self.ways.registers if message.method == "REGISTER" else self.ways.realm
        endless = self.ways.endless.removeprefix("inside ")
        if endless != self.ways.endless and ";tag=" not in message.headers["to"]:
            endless = ""
        free = self.ways.open and message.method == "INVITE"
        if endless or not (free or (self.nonce in given and self._is_right(message, given, realm))):
            self.asked.append(message)
            if endless in ("stale", "new"):
                self.nonce = f"{self.host}-{next(self._count)}"
            stale = f'"{self.nonce}"' not in given and given and self.ways.renewed == "stale"
            stale = stale or endless == "stale"
            more = ", stale=true" if stale else ""
            more += f", qop={self.ways.qop}" if self.ways.qop else ""
            more += f", algorithm={self.ways.algorithm}" if self.ways.algorithm else ""
            line = f'Digest realm="{realm}", nonce="{self.nonce}"{more}'
            head = "Proxy-Authenticate: " if proxy else "WWW-Authenticate: "
            self._answer(message, 407 if proxy else 401, head + line)
        else:
            self.taken.append(message)
            self._take(message)
        self.pulse.set()

    def _take(self, message: Message) -> None:
        contact = message.headers.get("contact", "").partition(";expires")[0]
        if message.method == "REGISTER":
            self._answer(message, 200, f"Contact: {contact};expires=300")
        elif message.method == "INVITE":
            more = []
            if self.ways.renewed:
                self.nonce = f"{self.host}-{next(self._count)}"
                if self.ways.renewed == "nextnonce":
                    more = [f'Authentication-Info: nextnonce="{self.nonce}", qop=auth']
            host, port = self.ways.contact or self.address
            if self.ways.updates:
                more += ["Allow: INVITE, ACK, BYE, CANCEL, UPDATE"]
            laws = "0" if ";tag=" in message.headers["to"] else self.ways.laws
            body = SDP.replace("RTP/AVP 0", f"RTP/AVP {laws}")
            self._answer(message, 200, f"Contact: <sip:c@{host}:{port}>", *more, body=body)
        elif message.method == "UPDATE":
            self._answer(message, 200, body=SDP)
        else:
            self._answer(message, {"REFER": 603}.get(message.method, 200))

    def _is_right(self, message: Message, given: str, realm: str) -> bool:
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]+))', given)
        told = {name: quoted or plain for name, quoted, plain in pairs}
        made = HASHES[told.get("algorithm", "MD5")]

        def h(text: str) -> str:
            return made(text.encode()).hexdigest()

        first = h(f"us:{realm}:{PASSWORD}")
        second = h(f"{message.method}:{told['uri']}")
        middle = told["nonce"]
        fresh = True
        if self.ways.qop and message.method == "REGISTER":
            middle += f":{told['nc']}:{told['cnonce']}:auth"
        elif self.ways.qop:
            middle += f":{told['nc']}:{told['cnonce']}:auth"
            uses = int(told["nc"], 16)
            fresh = uses > self._uses.get(told["nonce"], 0)
            self._uses[told["nonce"]] = uses
        right = (
            told["response"] == h(f"{first}:{middle}:{second}")
            and told["realm"] == realm
            and told["uri"] == message.start.split(" ")[1]
            and ("qop" in told) is bool(self.ways.qop)
        )
        if not (right and fresh):
            self.wrong.append(given)
        return right and fresh

    def _answer(self, request: Message, code: int, *headers: str, body: str = "") -> None:
        names = ("Via", "From", "Call-ID", "CSeq")
        to = request.headers["to"]
        lines = [
            f"SIP/2.0 {code} As asked",
            *(f"{name}: {request.headers[name.lower()]}" for name in names),
            f"To: {to}" if ";tag=" in to else f"To: {to};tag=c",
            *headers,
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        text = "\r\n".join(lines) + "\r\n\r\n" + body
        self._answered[_transaction(request)] = text.encode()
        self._transport.sendto(text.encode(), self._peer)


def _transaction(request: Message) -> tuple[str, str]:
    return request.headers["via"], request.headers["cseq"]


@dataclass
class Lines:
    """A gateway with trunks to two carriers, one of which it registers with."""

    world: GatewayStack
    carrier: Carrier
    registrar: Carrier
    stranger: Carrier

    async def dial(self, trunk: str, route: str = "greeted") -> str:
        """Place a call by a trunk; returns its id."""
        others = {"listed": self.registrar, "learnt": self.registrar, "bare": self.stranger}
        to = others.get(trunk, self.carrier)
        host, port = to.address
        placed = await asyncio.to_thread(
            ask, self.path, "dial", to=f"sip:1@{host}:{port}", route=route, trunk=trunk
        )
        return str(placed["call"])

    @property
    def path(self) -> Any:
        """The control socket."""
        return self.world.folder / "gateway.sock"


@pytest.fixture(scope="module")
def shared_lines(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lines]:
    carriers = [runner.run(Carrier(f"127.0.0.{n}").start()) for n in (1, 2, 3)]
    credentials = f'username = "us"\npassword = "{PASSWORD}"\n'
    more = f"""
[control]
socket = "gateway.sock"
[outbound]
enabled = true
allowed_prefixes = ["1"]
max_calls_per_minute = 1000
max_concurrent_calls = 20
[[trunk]]
name = "carrier"
peers = ["127.0.0.1"]
{credentials}
[[trunk]]
name = "bare"
peers = ["127.0.0.3"]
"""
    for name, realm in (("listed", 'realm = ["registration", "carrier"]'), ("learnt", "")):
        host, port = carriers[1].address
        more += f'[[trunk]]\nname = "{name}"\nregistrar = "{host}:{port}"\n{credentials}{realm}\n'
    routes = """
[[route]]
name = "greeted-too"
to = "^unused$"
[[route]]
name = "acts"
to = "^unused$"
[route.greeting]
say = "Hello."
[route.send_dtmf]
enabled = true
mode = "info"
[[route.transfer]]
name = "desk"
to = "sip:desk@127.0.0.1"
"""
    world = GatewayStack(tmp_path_factory.mktemp("digest"), more=more, routes=routes)
    runner.run(world.start())
    yield Lines(world, *carriers)
    runner.run(world.stop())
    for one in carriers:
        one.close()


@pytest.fixture
def lines(runner: asyncio.Runner, shared_lines: Lines) -> Lines:
    """Carriers that ask as usual."""
    for one in (shared_lines.carrier, shared_lines.registrar, shared_lines.stranger):
        one.begin()
    return shared_lines


async def hang_up(lines: Lines, name: str) -> None:
    await asyncio.to_thread(ask, lines.path, "hangup", call=name)


@pytest.mark.parametrize("code", [401, 407])
@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", ""])
@pytest.mark.parametrize("qop", ['"auth"', "", '"auth,auth-int"'])
@pytest.mark.parametrize("renewed", ["", "stale", "changed", "nextnonce"])
async def test_each_request_of_a_dialog_is_answered(
    lines: Lines, code: int, algorithm: str, qop: str, renewed: str
) -> None:
    """INVITE and BYE, and each is asked once at most."""
    carrier = lines.carrier
    carrier.begin(code=code, algorithm=algorithm, qop=qop, renewed=renewed)
    name = await lines.dial("carrier")
    await carrier.took("INVITE")
    await lines.world.gateway.wait("call.confirmed", call=name)
    await hang_up(lines, name)
    await carrier.took("BYE")
    asked = [message.method for message in carrier.asked]
    assert asked.count("INVITE") == 1
    assert asked.count("BYE") <= 1
    assert not carrier.wrong
    assert not lines.world.gateway.all("sip.bye_undelivered", call=name)


async def test_calls_are_asked_for_by_another_realm_than_registrations(lines: Lines) -> None:
    """Where the configuration lists both."""
    await lines.world.gateway.wait("trunk.registered", trunk="listed")
    name = await lines.dial("listed")
    await lines.registrar.took("INVITE")
    await lines.world.gateway.wait("call.confirmed", call=name)
    await hang_up(lines, name)
    await lines.registrar.took("BYE")


async def test_a_realm_that_is_neither_learnt_nor_listed(lines: Lines) -> None:
    await lines.world.gateway.wait("trunk.registered", trunk="learnt")
    for trunk, realm in (("learnt", "carrier"), ("listed", "third")):
        lines.registrar.begin(realm=realm)
        name = await lines.dial(trunk)
        summary = await lines.world.gateway.wait("call.summary", call=name)
        assert summary["ending"]["why"] in ("forbidden", "call_failed")
        assert not lines.registrar.taken
        assert not lines.registrar.wrong
    lines.registrar.begin(realm="registration")
    name = await lines.dial("learnt")
    await lines.registrar.took("INVITE")
    await lines.world.gateway.wait("call.confirmed", call=name)
    await hang_up(lines, name)


async def test_who_is_the_next_hop_only_gets_no_digest(lines: Lines) -> None:
    """A Contact elsewhere: the BYE goes there, and a challenge from there is nobody's."""
    lines.carrier.begin(contact=lines.stranger.address)
    name = await lines.dial("carrier")
    await lines.carrier.took("INVITE")
    await lines.world.gateway.wait("call.confirmed", call=name)
    await hang_up(lines, name)
    await lines.world.gateway.wait("call.summary", call=name)
    await lines.world.gateway.wait("trunk.foreign_challenge", source="127.0.0.3")
    assert {one.method for one in lines.stranger.asked} == {"BYE"}
    assert not lines.stranger.taken
    told = [m.text for m in lines.stranger.asked]
    assert not any("response=" in text for text in told), "a digest of the password"


async def offers(lines: Lines, method: str, at: Carrier, times: int = 1) -> str:
    """A call in which the gateway makes an offer; waits until that has come to ``at``."""
    name = await lines.dial("carrier")
    async with asyncio.timeout(20):
        while len(_inside(method, (*at.taken, *at.asked))) < times:
            at.pulse.clear()
            await at.pulse.wait()
    return name


def _inside(method: str, messages: Iterable[Message]) -> list[Message]:
    return [m for m in messages if m.method == method and ";tag=" in m.headers["to"]]


OFFERS = [("INVITE", False), ("UPDATE", True)]


@pytest.mark.parametrize("code", [401, 407])
@pytest.mark.parametrize("renewed", ["", "stale", "changed", "nextnonce"])
@pytest.mark.parametrize(("method", "updates"), OFFERS)
async def test_an_offer_inside_is_answered_too(
    lines: Lines, method: str, updates: bool, code: int, renewed: str
) -> None:
    """A re-INVITE or UPDATE of ours that the trunk challenges."""
    carrier = lines.carrier
    carrier.begin(code=code, renewed=renewed, laws="0 8", updates=updates)
    name = await offers(lines, method, carrier)
    await hang_up(lines, name)
    await carrier.took("BYE")
    taken = [one.method for one in carrier.taken]
    assert taken == ["INVITE", method, "BYE"]
    assert not carrier.wrong


@pytest.mark.parametrize("endless", ["inside stale", "inside new", "inside same"])
@pytest.mark.parametrize(("method", "updates"), OFFERS)
async def test_an_offer_inside_challenged_without_end(
    lines: Lines, method: str, updates: bool, endless: str
) -> None:
    """The offer is given up, and the call goes on."""
    carrier = lines.carrier
    carrier.begin(endless=endless, laws="0 8", updates=updates)
    name = await offers(lines, method, carrier, times=2)
    await goes_on(lines, name)
    assert 2 <= len(_inside(method, carrier.asked)) <= 5


@pytest.mark.parametrize("code", [401, 407])
@pytest.mark.parametrize(("method", "updates"), OFFERS)
async def test_an_offer_that_a_stranger_challenges(
    lines: Lines, method: str, updates: bool, code: int
) -> None:
    """It gets no digest, the offer is given up, and the call goes on."""
    before = len(lines.world.gateway.all("trunk.foreign_challenge", source="127.0.0.3"))
    lines.carrier.begin(contact=lines.stranger.address, laws="0 8", updates=updates)
    lines.stranger.begin(code=code)
    name = await offers(lines, method, lines.stranger)
    await lines.world.gateway.wait("trunk.foreign_challenge", count=before + 1, source="127.0.0.3")
    await goes_on(lines, name)
    assert [one.method for one in lines.stranger.asked] == [method, "BYE"]
    assert not any("response=" in one.text for one in lines.stranger.asked)


async def goes_on(lines: Lines, name: str) -> None:
    """Asserts that a call is up, and that its BYE is sent when it is ended."""
    status = await asyncio.to_thread(ask, lines.path, "status")
    assert name in [call["call_id"] for call in status["calls"]]
    assert not lines.world.gateway.all("call.summary", call=name)
    await hang_up(lines, name)
    summary = await lines.world.gateway.wait("call.summary", call=name)
    assert summary["ending"]["why"] == "operator", summary["ending"]


TOOLS = (("send_dtmf", {"digits": "5"}), ("transfer_call", {"destination": "desk"}))
ACTS = [
    {"kind": "nothing", "tools": [{"name": name, "arguments": json.dumps(given)}]}
    for name, given in TOOLS
]


async def acts(lines: Lines, trunk: str) -> tuple[str, list[dict[str, Any]]]:
    """A call whose model presses a key by INFO and sends the callee on by REFER, then hangs up."""
    lines.world.behave(vad="off", answers=[*ACTS, {"kind": "silent"}])
    name = await lines.dial(trunk, "acts")
    line = await lines.world.gateway.wait("call.session_up", call=name)
    (session,) = [one for one in lines.world.emulator.sessions if one.id == line["session_id"]]
    await session.wait_until(lambda s: len(outputs_of(s)) == 2, 20)
    await hang_up(lines, name)
    await lines.world.gateway.wait("call.summary", call=name)
    return name, outputs_of(session)


@pytest.mark.parametrize("code", [401, 407])
@pytest.mark.parametrize("renewed", ["", "stale", "changed", "nextnonce"])
async def test_requests_inside_are_answered_too(lines: Lines, code: int, renewed: str) -> None:
    """INFO, REFER and BYE, each asked once at most, and none with a nonce count used before."""
    carrier = lines.carrier
    carrier.begin(code=code, renewed=renewed)
    name, outputs = await acts(lines, "carrier")
    assert [one.method for one in carrier.taken] == ["INVITE", "INFO", "REFER", "BYE"]
    assert max(Counter(one.method for one in carrier.asked).values()) == 1
    assert not carrier.wrong
    assert [one["status"] for one in outputs] == ["sent", "refused"]
    assert not lines.world.gateway.all("sip.bye_undelivered", call=name)


async def test_who_has_no_credentials_gives_none_inside(lines: Lines) -> None:
    asks = lines.stranger
    asks.begin(endless="inside new", open=True)
    name, outputs = await acts(lines, "bare")
    assert [one.method for one in asks.asked] == ["INFO", "REFER", "BYE"]
    assert outputs[1]["status"] == "refused"
    assert not any("response=" in one.text for one in asks.asked)
    await lines.world.gateway.wait("sip.bye_undelivered", call=name)


@pytest.mark.parametrize("endless", ["inside stale", "inside new", "inside same"])
async def test_challenges_without_end_inside(lines: Lines, endless: str) -> None:
    """Each request is tried a few times, and the call ends."""
    lines.carrier.begin(endless=endless)
    name, outputs = await acts(lines, "carrier")
    assert max(Counter(one.method for one in lines.carrier.asked).values()) <= 5
    assert outputs[1]["status"] == "refused"
    await lines.world.gateway.wait("sip.bye_undelivered", call=name)


@pytest.mark.parametrize("endless", ["stale", "new", "same"])
async def test_challenges_without_end(lines: Lines, endless: str) -> None:
    lines.carrier.begin(endless=endless)
    name = await lines.dial("carrier")
    summary = await lines.world.gateway.wait("call.summary", call=name)
    assert summary["ending"]["why"] in ("forbidden", "call_failed")
    assert 2 <= len(lines.carrier.asked) <= 5
