# SPDX-License-Identifier: GPL-2.0-or-later
"""Registrars with ways of their own: the trunk is registered with each, for as long as it says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httpx

from tests.support.harness import eventually
from tests.support.site_under_test import site

ROUTES = '[[route]]\nname = "anybody"\n'
Fields = dict[str, str]
Rule = Callable[[Fields], tuple[int, list[str]]]
"""Makes code and header fields of the answer to a REGISTER, of its fields."""


class Registrar(asyncio.DatagramProtocol):
    """Answers REGISTER by a rule."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._branches: set[str] = set()
        self._transport: asyncio.DatagramTransport | None = None

    @property
    def count(self) -> int:
        """Of REGISTER requests; one that comes again, as this machine was busy, is no other."""
        return len(self._branches)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        text = data.decode()
        if not text.startswith("REGISTER ") or self._transport is None:
            return
        asked = dict(re.findall(r"^([\w-]+): *(.*?)\r$", text, re.MULTILINE))
        self._branches.add(asked["Via"])
        code, lines = self._rule(asked)
        told = [line.partition(":")[0] for line in lines]
        names = [name for name in ("Via", "From", "Call-ID", "CSeq") if name not in told]
        head = [f"{name}: {asked[name]}" for name in names]
        answer = [f"SIP/2.0 {code} As told", *head, f"To: {asked['To']};tag=r", *lines]
        text = "\r\n".join([*answer, "Content-Length: 0"]) + "\r\n\r\n"
        self._transport.sendto(text.encode(), addr)


def contact(asked: Fields) -> str:
    """As it was registered."""
    return asked.get("Contact", "").partition(";expires")[0]


def granted(seconds: int) -> Rule:
    return lambda asked: (200, [f"Contact: {contact(asked)};expires={seconds}"])


def too_brief(asked: Fields) -> tuple[int, list[str]]:
    if 0 < int(asked["Expires"]) < 3600:
        return 423, ["Min-Expires: 3600"]
    return granted(int(asked["Expires"]))(asked)


def challenged(*challenges: str) -> Rule:
    def rule(asked: Fields) -> tuple[int, list[str]]:
        if "Authorization" in asked:
            return granted(100)(asked)
        return 401, [f'WWW-Authenticate: Digest realm="r",{one}' for one in challenges]

    return rule


def stale(asked: Fields) -> tuple[int, list[str]]:
    said = asked.get("Authorization", "")
    if 'nonce="second"' in said:
        return granted(100)(asked)
    more = 'nonce="second",stale=true' if said else 'nonce="first"'
    return 401, [f'WWW-Authenticate: Digest realm="r",algorithm=MD5,qop="auth",{more}']


def beside_bearer(*, first: bool) -> Rule:
    digests = (
        'Digest realm="r",nonce="n",algorithm=SHA-256,qop="auth"',
        'Digest realm="r",nonce="n",algorithm=MD5,qop="auth"',
    )
    bearer = ('Bearer authz_server="https://example.net/a", scope="x"',)

    def rule(asked: Fields) -> tuple[int, list[str]]:
        if asked.get("Authorization", "").startswith("Digest "):
            return granted(100)(asked)
        challenges = bearer + digests if first else digests + bearer
        return 401, [f"WWW-Authenticate: {one}" for one in challenges]

    return rule


RULES: dict[str, tuple[int, Rule]] = {
    "pjproject #4038: 423 with Min-Expires": (3600, too_brief),
    "opensips #3659: less than was asked for": (77, granted(77)),
    "RFC 3261 10.3: Expires of the response": (
        90,
        lambda asked: (200, [f"Contact: {contact(asked)}", "Expires: 90"]),
    ),
    "RFC 3261 10.3: no Contact": (120, lambda _asked: (200, ["Expires: 120"])),
    "RFC 3261 10.3: other contacts before ours": (
        100,
        lambda asked: (
            200,
            [f"Contact: <sip:x@192.0.2.7>;expires=5, {contact(asked)};q=0.7;expires=100"],
        ),
    ),
    "RFC 5626: our contact rewritten": (
        100,
        lambda _asked: (200, ["Contact: <sip:user@203.0.113.5:4711;ob>;expires=100"]),
    ),
    "RFC 3608: Service-Route, Path, P-Associated-URI": (
        100,
        lambda asked: (
            200,
            [
                f"Contact: {contact(asked)};expires=100",
                "Service-Route: <sip:orig@127.0.0.1:9;lr>",
                "Path: <sip:1@192.0.2.1;lr>",
                "P-Associated-URI: <sip:a@example.net>, <tel:+4930>",
            ],
        ),
    ),
    "RFC 2069: a challenge without qop": (100, challenged('nonce="n"')),
    "RFC 8760: several algorithms, the first unknown": (
        100,
        challenged(
            'nonce="n",algorithm=SHA-512-256,qop="auth"',
            'nonce="n",algorithm=SHA-256,qop="auth"',
            'nonce="n",algorithm=MD5,qop="auth"',
        ),
    ),
    "RFC 2617: two ways of protection, an empty opaque": (
        100,
        challenged('nonce="n",algorithm="MD5",qop="auth,auth-int",opaque=""'),
    ),
    "doubango #27: a challenge over several lines": (
        100,
        challenged('\r\n nonce="n",algorithm=MD5,\r\n\tqop="auth"'),
    ),
    "RFC 2617: a stale nonce": (100, stale),
    "RFC 8898: Bearer before Digest": (100, beside_bearer(first=True)),
    "RFC 8898: Bearer behind Digest": (100, beside_bearer(first=False)),
}


def _received(address: str) -> Rule:
    """Tells where the REGISTER came from (RFC 3581)."""
    return lambda asked: (
        200,
        [f"Via: {asked['Via']};received={address}", f"Contact: {contact(asked)};expires=100"],
    )


def _growing() -> Rule:
    asked_for = itertools.count(301)
    return lambda _asked: (423, [f"Min-Expires: {next(asked_for)}"])


def _service_routes(count: int) -> list[str]:
    return [f"Service-Route: <sip:orig{n}@127.0.0.1:9;lr>" for n in range(count)]


def _challenged_anew(realm: str) -> Rule:
    """Each time with another nonce, which may stand for the realm too."""
    nonces = map(str, itertools.count())

    def rule(_asked: Fields) -> tuple[int, list[str]]:
        nonce = next(nonces)
        told = realm.replace("NONCE", nonce)
        return 401, [
            f'WWW-Authenticate: Digest realm="{told}",nonce="{nonce}",stale=true,qop="auth"'
        ]

    return rule


HOSTILE: dict[str, Rule] = {
    "a contact that is every contact": lambda _asked: (200, ["Contact: *"]),
    "nine routes, a field each": lambda asked: (
        200,
        [f"Contact: {contact(asked)};expires=100", *_service_routes(9)],
    ),
    "sixty routes": lambda asked: (
        200,
        [f"Contact: {contact(asked)};expires=100", *_service_routes(60)],
    ),
    "a telephone's number for a contact": lambda _asked: (200, ["Contact: <tel:+4930>;expires=9"]),
    "a route to a telephone": lambda asked: (
        200,
        [f"Contact: {contact(asked)};expires=100", "Service-Route: <tel:+4930>"],
    ),
    "a route to nowhere": lambda asked: (
        200,
        [f"Contact: {contact(asked)};expires=100", "Service-Route: <sip:>, <sip:@>, x"],
    ),
    "200 header fields": lambda asked: (
        200,
        [f"Contact: {contact(asked)};expires=100", *["P-Associated-URI: <sip:a@b>"] * 200],
    ),
    "we are a name": _received("nobody.example"),
    "we are 3,000 characters": _received("a" * 3000),
    "we are nowhere": _received("0.0.0.0;rport=0"),
    "we are of another family": _received("2001:db8::1"),
    "we are at no port": _received("192.0.2.1;rport=99999"),
    "two that we are": lambda asked: (200, [f"Contact: {contact(asked)}", f"To: {asked['To']}"]),
    "refused, with a telephone's number": lambda _asked: (403, ["Contact: <tel:+4930>"]),
    "sixty challenges": lambda _asked: (
        401,
        [f'WWW-Authenticate: Digest realm="r{n}",nonce="n"' for n in range(60)],
    ),
    "sixty challenges of one realm": lambda _asked: (
        401,
        [f'WWW-Authenticate: Digest realm="r",nonce="n{n}"' for n in range(60)],
    ),
    "a challenge of 3,000 characters": lambda _asked: (
        401,
        [f'WWW-Authenticate: Digest realm="r",nonce="{"n" * 3000}",opaque="{"o" * 3000}"'],
    ),
    "more each time": _growing(),
    "all the time there is": lambda _asked: (423, ["Min-Expires: 4294967295"]),
    "423 without Min-Expires": lambda _asked: (423, []),
    "challenges without end": _challenged_anew("r"),
    "challenges without end, each of another realm": _challenged_anew("NONCE"),
    "no time": granted(0),
    "less than no time": granted(-1),
    "more seconds than a number has": granted(10**30),
    "2^31 seconds": granted(2**31),
    "2^32 - 1 seconds": granted(2**32 - 1),
    "no time, by Expires": lambda asked: (200, [f"Contact: {contact(asked)}", "Expires: 0"]),
    "2^31 seconds, by Expires": lambda _asked: (200, ["Expires: 2147483648"]),
    "Min-Expires of what was asked": lambda asked: (423, [f"Min-Expires: {asked['Expires']}"]),
    "Min-Expires of nothing": lambda _asked: (423, ["Min-Expires: 0"]),
    "to be asked again at once": lambda _asked: (503, ["Retry-After: 0"]),
}
"""Answers that are given to every REGISTER."""

FEW = 12
"""REGISTER requests in the time that a test looks at; a loop sends thousands."""


async def test_what_a_registrar_answers_ends_nothing(runner: object, own_folder: Path) -> None:
    """Neither the process nor in a loop: the outcome is told, and calls are served."""
    loop = asyncio.get_running_loop()
    trunks, registrars = '[access]\nunknown_sources = "allow"\n', dict[str, Registrar]()
    ends = []
    for number, (name, rule) in enumerate(HOSTILE.items()):
        end, registrar = await loop.create_datagram_endpoint(
            lambda rule=rule: Registrar(rule),  # type: ignore[misc]
            ("127.0.0.1", 0),
        )
        ends.append(end)
        registrars[name] = registrar
        host, port = end.get_extra_info("sockname")[:2]
        trunks += (
            f'[[trunk]]\nname = "t{number}"\nregistrar = "{host}:{port}"\n'
            'username = "user"\npassword = "secret"\n'
        )
    try:
        async with site(own_folder, more=trunks, routes=ROUTES) as gateway:

            def untold() -> list[str]:
                told = {
                    line["trunk"]
                    for event in ("trunk.registered", "trunk.registration_failed")
                    for line in gateway.gateway.all(event)
                }
                return [one for n, one in enumerate(HOSTILE) if f"t{n}" not in told]

            with contextlib.suppress(AssertionError):
                await eventually(lambda: not untold(), "an outcome of each")
            assert not untold()
            assert (await gateway.phone.options()).code == 200
            sent = {name: one.count for name, one in registrars.items() if one.count > FEW}
            assert not sent
    finally:
        for end in ends:
            end.close()


async def test_an_operator_has_a_trunk_register_now(runner: object, own_folder: Path) -> None:
    loop = asyncio.get_running_loop()
    end, registrar = await loop.create_datagram_endpoint(
        lambda: Registrar(granted(3600)), ("127.0.0.1", 0)
    )
    host, port = end.get_extra_info("sockname")[:2]
    more = f'[[trunk]]\nname = "pbx"\nregistrar = "{host}:{port}"\nusername = "user"\n'
    more += '[[trunk]]\nname = "static"\npeers = ["192.0.2.1"]\n'
    try:
        async with site(own_folder, more=more, routes=ROUTES) as gateway:
            await gateway.gateway.wait("trunk.registered", trunk="pbx")
            before = registrar.count
            transport = httpx.AsyncHTTPTransport(uds=str(own_folder / "control"))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                codes = {
                    name: (await http.post(f"/api/v1/trunks/{name}/register")).status_code
                    for name in ("pbx", "static", "nobody")
                }
            assert codes == {"pbx": 200, "static": 409, "nobody": 404}
            await eventually(lambda: registrar.count > before, "a REGISTER")
            line = await gateway.gateway.wait("api.audit", action="register", trunk="pbx")
            assert line["result"] == "ok"
    finally:
        end.close()


async def test_a_trunk_is_trying_for_no_longer_than_the_gateway_runs(
    runner: object, own_folder: Path
) -> None:
    loop = asyncio.get_running_loop()
    end, _silent = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
    host, port = end.get_extra_info("sockname")[:2]
    more = f'[[trunk]]\nname = "pbx"\nregistrar = "{host}:{port}"\nusername = "user"\n'
    try:
        began = time.monotonic()
        async with site(own_folder, more=more, routes=ROUTES):
            transport = httpx.AsyncHTTPTransport(uds=str(own_folder / "control"))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                (trunk,) = (await http.get("/api/v1/status")).json()["trunks"]
            assert trunk["state"] == "trying"
            assert trunk["since_seconds"] <= time.monotonic() - began
    finally:
        end.close()


async def test_registrars(runner: object, own_folder: Path) -> None:
    loop = asyncio.get_running_loop()
    trunks, ends = "", []
    for number, (_seconds, rule) in enumerate(RULES.values()):
        end, _registrar = await loop.create_datagram_endpoint(
            lambda rule=rule: Registrar(rule),  # type: ignore[misc]
            ("127.0.0.1", 0),
        )
        ends.append(end)
        host, port = end.get_extra_info("sockname")[:2]
        trunks += (
            f'[[trunk]]\nname = "t{number}"\nregistrar = "{host}:{port}"\n'
            'username = "user"\npassword = "secret"\n'
        )
    try:
        async with site(own_folder, more=trunks, routes=ROUTES) as gateway:
            for number, (name, (seconds, _rule)) in enumerate(RULES.items()):
                line = await gateway.gateway.wait("trunk.registered", trunk=f"t{number}")
                assert line["expires"] == seconds, name
            assert not gateway.gateway.all("trunk.registration_failed")
    finally:
        for end in ends:
            end.close()
