# SPDX-License-Identifier: GPL-2.0-or-later
"""What answers to REGISTER and refused passwords mean; status codes in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway.devtools.doctor import Finding, bad, ok, warn
from gateway.devtools.doctor.trunk_call import Evidence
from gateway.devtools.doctor.trunk_messages import (
    Packet,
    has_credentials,
    host_port_of,
    phrase_of,
    realm_of,
    seen_by,
    shown,
    via_of,
)
from gateway.sip.messages.headers import parameter_of, split_list
from gateway.sip.settings import Trunk
from gateway.text import whole_number

SHORT_EXPIRES = 60
"""Seconds: a registration that is granted for less is refreshed all the time."""
NAT_SECONDS = 30
"""Binding of a NAT without traffic, for UDP (RFC 4787 section 4.3 asks for 120, few have it)."""
Place = Callable[[str, str], str]
"""Names a setting of the configuration, or of a trunk, with its file and line."""


def registration(evidence: Evidence, place: Place) -> Iterator[Finding]:
    packets, trunk = evidence.registration, evidence.trunk
    if evidence.own_port is not None:
        taken, used = evidence.own_port
        fact = f"port {taken} is in use, so a gateway runs: called from port {used}"
        yield ok("", f"{fact}; nothing was registered, the gateway's binding stays").of("own_port")
    if evidence.registered is None or not packets:
        return
    asked = next((one for one in packets if one.sent and one.method == "REGISTER"), None)
    final = next(
        (one for one in packets if not one.sent and one.status >= 200 and one.status != 401), None
    )
    if evidence.registered != "registered":
        yield from _login_failed(packets, trunk, place)
        return
    if final is None or asked is None:
        return
    granted = _granted(final)
    fact = f"registered as {trunk.username}"
    if granted is None:
        yield ok("", fact).of("registered")
    elif granted < min(SHORT_EXPIRES, trunk.expires):
        yield warn(
            "",
            f"registration is granted for {granted} s, {trunk.expires} s were asked: the gateway "
            "registers all the time, and is unreachable whenever one is lost",
            f"raise the longest expiry at the registrar (Asterisk: maximum_expiration of the AOR); "
            f"{place('expires', trunk.name)} asks for more already",
        ).of("register_expires", *shown(asked, final))
    else:
        yield ok("", f"{fact} for {granted} s").of("registered")
    yield from _binding(trunk, asked, final, granted, place)


def _binding(
    trunk: Trunk, asked: Packet, final: Packet, granted: int | None, place: Place
) -> Iterator[Finding]:
    """A NAT in between, whose binding is gone before the next REGISTER."""
    seen, own = seen_by(final), host_port_of(via_of(asked))
    if not seen or seen == own or trunk.transport != "udp" or not granted:
        return
    if granted > 2 * NAT_SECONDS:
        yield ok(
            "",
            f"a NAT is in between: the registrar sees {seen} for {own}. Its binding outlives "
            f"{NAT_SECONDS} s by the gateway's keep-alives only, every 15 s",
        ).of("nat_binding")
    del place


def _login_failed(packets: tuple[Packet, ...], trunk: Trunk, place: Place) -> Iterator[Finding]:
    answers = [one for one in packets if not one.sent and one.method == "REGISTER"]
    requests = [one for one in packets if one.sent and one.method == "REGISTER"]
    if not answers:
        yield bad(
            "",
            f"REGISTER was sent {len(requests)} times and nobody answered",
            f"are {place('registrar', trunk.name)} and {place('transport', trunk.name)} right? "
            "Does a firewall drop it?",
        ).of("register_unanswered", *shown(*requests[-1:]))
        return
    yield refused_login(packets, trunk, place)


def refused_login(packets: tuple[Packet, ...], trunk: Trunk, place: Place) -> Finding:
    """What a refused REGISTER, or an INVITE refused with 401 or 407, means."""
    answers = [one for one in packets if not one.sent and one.status >= 300]
    last = answers[-1]
    method = last.method
    tried = [one for one in packets if one.sent and one.method == method and has_credentials(one)]
    realms = [realm_of(one) for one in answers if one.status in (401, 407)]
    realm = realms[-1] if realms else ""
    said = f"{last.status} {phrase_of(last)}"
    proof = shown(*([*tried, last][-2:]))
    if realms and not tried:
        if "*" not in trunk.realms and realm not in trunk.realms:
            names = ", ".join(trunk.realms)
            return bad(
                "",
                f"the password is asked for by realm {realm!r}, and the realm of the configuration "
                f"is {names!r}: nothing was sent",
                f'{place("realm", trunk.name)} has to be {realm!r}, or "*"',
            ).of("realm", *proof)
        if not trunk.password:
            return bad(
                "",
                f"{method} is answered {said}: a password is asked for, and there is none",
                f"set {place('username', trunk.name)} and {place('password', trunk.name)}",
            ).of("password", *proof)
        return bad(
            "",
            f"{method} is challenged ({said}) and no credentials were sent",
            f"{place('realm', trunk.name)}; the password is sent only to addresses of the trunk "
            f"itself: {place('peers', trunk.name)}, registrar, outbound_proxy",
        ).of("realm", *proof)
    if last.status == 404:
        return bad(
            "",
            f"{method} of {trunk.username} is answered {said}: that user is not known there",
            f"{place('username', trunk.name)}, and whether {place('registrar', trunk.name)} is "
            "its domain",
        ).of("user", *proof)
    if last.status in (401, 403, 407) and tried:
        return bad(
            "",
            f"the password of {trunk.username} is not accepted: {method} with credentials is "
            f"answered {said}",
            f"{place('password', trunk.name)}, {place('username', trunk.name)}; some carriers have "
            "an authentication name beside the number",
        ).of("password", *proof)
    if last.status == 423:
        least = last.header("min-expires") or "more"
        return bad(
            "",
            f"the registrar wants at least {least} s between registrations",
            f"{place('expires', trunk.name)} = {least}",
        ).of("register_expires", *proof)
    meaning, advice = meaning_of(last.status)
    return bad("", f"{method} is answered {said}: {meaning}", advice).of("register_refused", *proof)


def _granted(answer: Packet) -> int | None:
    """The longest expiry of a binding in a 200 to REGISTER; None where it says none."""
    found = [
        parameter_of(one.partition(">")[2].lstrip(";"), "expires")
        for field in answer.headers.get("contact", ())
        for one in split_list(field)
    ]
    numbers = [whole_number(one or "") for one in (*found, answer.header("expires"))]
    return max((one for one in numbers if one is not None), default=None)


MEANINGS = {
    400: (
        "it could not read the request",
        "the message below; a SIP ALG in a router may mangle it",
    ),
    403: (
        "it knows whom it speaks with, and forbids the call",
        "the caller id that it wants (trunk.caller_id), the destinations it permits, and whether "
        "it expects calls from this address and port",
    ),
    404: (
        "the number is not known there",
        "the form of the number: with or without +, country code or a prefix",
    ),
    405: ("it takes no calls at this address", "trunk.registrar, trunk.peers"),
    408: (
        "what is behind the trunk did not answer in time",
        "the far end of this number; the trunk itself answers",
    ),
    410: ("the number exists no more", "another test number"),
    420: ("it does not know an extension that is required", "sip.session_timers"),
    480: (
        "nobody is there for this number now",
        "whether the telephone or service behind it is registered",
    ),
    482: ("the call came back to where it had been: a loop", "the dialplan of the other side"),
    483: ("the call ran in a circle (Max-Forwards)", "the dialplan of the other side"),
    484: ("digits are missing", "the form of the number"),
    486: ("the number is busy", "call again; or calls at a time are limited there"),
    487: ("the call was cancelled", "call again"),
    500: ("an error of the other side", "its log"),
    502: ("what is behind the trunk answered nonsense", "its log"),
    503: (
        "it is overloaded, has no way to this number, or all channels are taken",
        "the number of channels of the contract; its route; [trunk] max_concurrent_calls",
    ),
    504: ("what is behind the trunk did not answer in time", "its route for this number"),
    600: ("the number is busy everywhere", "call again"),
    603: ("the call was declined", "whether this caller id is blocked there"),
}


def meaning_of(code: int) -> tuple[str, str]:
    if code in MEANINGS:
        return MEANINGS[code]
    kind = {3: "the call is sent elsewhere, which is not followed", 5: "an error of its own"}
    return kind.get(code // 100, "it refuses"), "the message below"
