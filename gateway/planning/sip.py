# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings and trunks in the form of the SIP user agent; URIs, caller ids and limits of calls that
are placed. Pure."""

from __future__ import annotations

import re
from collections import deque
from urllib.parse import unquote

from gateway.audio import Codec
from gateway.config import Config
from gateway.config.numbers import called, matches, named_country
from gateway.config.sections import OutboundSettings
from gateway.config.sip import InboundAuthSettings, TrunkSettings
from gateway.sip import (
    Access,
    BanPolicy,
    Credentials,
    DigestPolicy,
    JitterBuffer,
    Limits,
    Listen,
    Peer,
    Security,
    SipSettings,
    Tls,
    Trunk,
)
from gateway.sip.messages.headers import GOES_ELSEWHERE

MINUTE = 60.0


def dial_uri(to: str, trunk: TrunkSettings | None) -> str:
    """Return the SIP URI to call for a number, a tel URI or a SIP URI; numbers go to the trunk.

    Raises ValueError where there is neither a host in it nor a trunk, and for a URI that would
    bring header fields along, or go elsewhere than to its host.
    """
    if re.match(r"sips?:", to, re.IGNORECASE) and "@" in to:
        names = {unquote(one.partition("=")[0]).strip().lower() for one in to.split(";")[1:]}
        if re.search(r"[?\s<>\"]", to) or names & GOES_ELSEWHERE:
            raise ValueError(f"{to!r} is no plain URI like sip:NUMBER@HOST")
        return to
    number = re.sub(r"^(?:tel|sips?):", "", to, flags=re.IGNORECASE)
    number = re.split("[;?]", number, maxsplit=1)[0]
    number = re.sub(r"[\s()./-]", "", number)
    if trunk is None:
        raise ValueError(f"{to!r} has no host: name a trunk, or write sip:NUMBER@HOST")
    host = str(trunk.registrar) if trunk.registrar is not None else str(trunk.peers[0])
    transport = "" if trunk.transport == "udp" else f";transport={trunk.transport}"
    return f"sip:{number}@{host}{transport}"


def caller_id_of(caller_id: str, trunk: TrunkSettings | None) -> str:
    """Return ``caller_id`` if ``trunk.caller_ids`` allows it. Raises ValueError if not."""
    if not caller_id:
        return ""
    if trunk is None:
        raise ValueError("a caller id needs a trunk")
    allowed = trunk.caller_ids
    if allowed is None or not re.fullmatch(r"[+0-9A-Za-z_.\-]+", caller_id):
        why = "is not set" if allowed is None else "takes a number or a name without spaces"
        raise ValueError(f"caller id {caller_id!r}: caller_ids of trunk {trunk.name} {why}")
    if not allowed.fullmatch(caller_id):
        raise ValueError(f"caller id {caller_id!r}: not one of caller_ids of trunk {trunk.name}")
    return caller_id


class OutboundCaps:
    """Limits on calls that the gateway places. Every refusal names its rule.

    Who chose the number makes a difference: somebody who asked for a call (``on_demand``), a
    pattern of the dialplan that fits it (``by_pattern``), or the dialplan itself.
    """

    def __init__(self, settings: OutboundSettings) -> None:
        self._settings = settings
        self._placed: deque[float] = deque()

    def refusal(
        self,
        to: str,
        active: int,
        now: float,
        *,
        on_demand: bool,
        by_pattern: bool = False,
        count: bool = True,
    ) -> str | None:
        """Return why a call may not be placed; None if it may, and with ``count`` count it.

        Args:
            to: the URI that is to be called.
            active: calls of ours that are in progress.
            now: any monotonic clock (s).
        """
        caps = self._settings
        if on_demand and not caps.enabled:
            return "outbound.enabled is false"
        if (rule := self.destination_refusal(to, on_demand, by_pattern)) is not None:
            return rule
        if active >= caps.max_concurrent_calls:
            return f"outbound.max_concurrent_calls = {caps.max_concurrent_calls}"
        while self._placed and self._placed[0] <= now - MINUTE:
            self._placed.popleft()
        if len(self._placed) >= caps.max_calls_per_minute:
            return f"outbound.max_calls_per_minute = {caps.max_calls_per_minute}"
        if count:
            self._placed.append(now)
        return None

    def destination_refusal(self, to: str, on_demand: bool, by_pattern: bool) -> str | None:
        """Return why a destination may never be called; None if it may."""
        caps, number = self._settings, called(to, self._settings.country)
        for prefix in sorted(caps.denied_prefixes, key=len, reverse=True):
            if matches(number, prefix, caps.country, all_readings=True):
                return f"outbound.denied_prefixes has {prefix!r}"
        if not (on_demand or by_pattern):
            return None
        if number.unclear:
            return f"{number.dialled!r} is neither a telephone number nor a name"
        # Where only a pattern says so, extensions and names need no more than that.
        if on_demand or (caps.allowed_prefixes and number.readings):
            permitted = (
                matches(number, one, caps.country, all_readings=False)
                for one in caps.allowed_prefixes
            )
            if not any(permitted):
                return f"outbound.allowed_prefixes has no beginning of {number.dialled!r}"
        closed = number.classes - set(caps.allowed_classes)
        if named_country(caps.allowed_prefixes, number, caps.country):
            closed -= {"international"}
        if closed:
            return f"outbound.allowed_classes has no {min(closed)!r}"
        return None

    def callback_refusal(self, number: str, allow: re.Pattern[str] | None) -> str | None:
        """Return why a callback to a number may not be scheduled; None if it may.

        Where ``outbound.allowed_prefixes`` is empty, the route's own ``allowed_numbers`` must allow
        it, even the caller's number: From can be forged.
        """
        if self._settings.allowed_prefixes:
            return self.destination_refusal(number, on_demand=True, by_pattern=False)
        if allow is None or not allow.fullmatch(number):
            return "outbound.allowed_prefixes is empty"
        return self.destination_refusal(number, on_demand=False, by_pattern=True)


def _credentials(auth: InboundAuthSettings | None) -> Credentials | None:
    return None if auth is None else Credentials(auth.username, auth.password.get_secret_value())


LEAST_RATE = 50
"""Calls a second of a trunk without a rate of its own, on a gateway for few calls."""


def _limits_of(trunk: TrunkSettings, burst: int, max_calls: int) -> Limits:
    """Return a trunk's limits; its default rate lets ``max_calls`` calls in within a second."""
    rate, most = trunk.calls_per_second, trunk.max_unacknowledged_calls
    if rate is None:
        rate = max(max_calls, LEAST_RATE)
        burst = max(burst, rate)
    most = -(-max_calls // 2) if most is None else most
    return Limits(rate, burst, trunk.max_concurrent_calls, most)


def trunk_of(trunk: TrunkSettings, burst: int, max_calls: int) -> Trunk:
    """Return a ``[[trunk]]`` in the form of the user agent.

    Args:
        burst: ``access.burst``, for trunks without a rate of their own.
        max_calls: ``sip.max_calls``.
    """
    return Trunk(
        name=trunk.name,
        peers=tuple(Peer(*peer) for peer in trunk.peers),
        username=trunk.username,
        password="" if trunk.password is None else trunk.password.get_secret_value(),
        realms=trunk.realm,
        registrar=str(trunk.registrar or ""),
        outbound_proxy=str(trunk.outbound_proxy or ""),
        transport=trunk.transport,
        codecs=tuple(Codec(name) for name in trunk.codecs),
        security=Security(trunk.srtp, trunk.srtp_keying),
        headers=trunk.headers,
        caller_id=trunk.caller_id,
        expires=trunk.expires,
        options_interval=trunk.options_interval,
        packet_wait_ms=trunk.packet_wait_ms,
        limits=_limits_of(trunk, burst, max_calls),
        inbound_auth=_credentials(trunk.inbound_auth),
        certificate_names=trunk.certificate_names,
    )


def sip_settings(config: Config) -> SipSettings:
    """Return ``[sip]``, ``[media]``, ``[access]`` and trunks in the form of the user agent."""
    media, tls, access = config.media, config.sip.tls, config.access
    return SipSettings(
        listen=tuple(Listen(*address) for address in config.sip.listen),
        rtp_ports=config.sip.rtp_ports,
        dscp=config.sip.dscp,
        rtp_dscp=config.sip.rtp_dscp,
        public_address=config.sip.public_address,
        max_calls=config.sip.max_calls,
        user_agent=config.sip.user_agent,
        packet_wait_ms=media.packet_wait_ms,
        jitter_buffer=JitterBuffer(catch_up=media.jb_catch_up),
        stun_server=config.sip.stun_server,
        session_timers=config.sip.session_timers,
        session_expires=config.sip.session_expires,
        session_min=config.sip.session_min,
        tls=Tls(
            certificate=str(tls.certificate or ""),
            private_key=str(tls.private_key or ""),
            ca=str(tls.ca or ""),
            verify_server=tls.verify_server,
            client_certificates=tls.client_certificates,
            min_version=tls.min_version,
            ciphers=tls.ciphers,
        ),
        security=Security(media.srtp, media.srtp_keying),
        trunks=tuple(trunk_of(trunk, access.burst, config.sip.max_calls) for trunk in config.trunk),
        access=Access(
            access.unknown_sources,
            Limits(
                access.calls_per_second,
                access.burst,
                access.concurrent_of(config.sip.max_calls),
                access.unacknowledged_of(config.sip.max_calls),
            ),
            DigestPolicy(access.realm, access.auth_algorithms, access.nonce_lifetime),
            BanPolicy(access.ban_after, access.ban_window, access.ban_seconds),
        ),
    )
