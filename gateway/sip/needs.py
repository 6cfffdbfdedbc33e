"""What the settings ask of pjsua2, against what the build in use has."""

from __future__ import annotations

import re

from gateway.sip import library as pjsua2
from gateway.sip.library import Build, account_capacity
from gateway.sip.types import SipSettings


def unmet(settings: SipSettings, build: Build) -> list[str]:
    """What is asked for and not there: each line names the key and the library."""
    library = f"{build.distribution} (pjproject {build.version}, {build.path})"
    lacking = [
        f"sip.listen: {listen.transport}:{listen.host}:{listen.port} needs TLS, and {library} "
        "was built without; `make pjsua2` builds one with the system's OpenSSL"
        for listen in settings.listen
        if listen.transport == "tls" and build.tls == "none"
    ]
    old = re.match(r"OpenSSL (0\.|1\.0\.)", build.tls)
    if old and settings.tls.min_version == "1.3" and _listens(settings, "tls"):
        lacking.append(
            f'sip.tls.min_version: "1.3" is not in {build.tls} of {library}; `make pjsua2` builds '
            "one with the system's OpenSSL"
        )
    if len(settings.trunks) >= (places := account_capacity()):
        lacking.append(
            f"trunk: {library} has no place for more than {places - 1}, and there are "
            f"{len(settings.trunks)}; `make pjsua2` builds one for 127"
        )
    outward = [trunk.name for trunk in settings.trunks if trunk.transport == "tls"]
    if old and outward and settings.tls.verify_server and not settings.tls.ca:
        lacking.append(
            f"sip.tls.ca: missing; trunk {outward[0]} is over TLS, and {build.tls} of {library} "
            "cannot use the system's many CAs: name a file with those of the trunk"
        )
    wishes = [("media.srtp_keying", settings.security)]
    wishes += [(f"trunk {one.name}: srtp_keying", one.security) for one in settings.trunks]
    lacking += [
        f'{key}: "{keying}" was left out when {library} was built; it has {", ".join(build.keying)}'
        for key, security in wishes
        for keying in security.keying
        if security.srtp != "off" and keying not in build.keying
    ]
    return lacking


def ipv6_unmet(settings: SipSettings) -> str:
    """As :func:`unmet`, of IPv6, which only an initialised library tells; empty for nothing."""
    six = [listen for listen in settings.listen if ":" in listen.host]
    if not six or pjsua2.compiled("PJ_HAS_IPV6") != 0:
        return ""
    return (
        f"sip.listen: {six[0].transport}:[{six[0].host}]:{six[0].port} needs IPv6, and "
        f"{pjsua2.build().distribution} was built without; `make pjsua2` builds one with it"
    )


def _listens(settings: SipSettings, transport: str) -> bool:
    return any(listen.transport == transport for listen in settings.listen)
