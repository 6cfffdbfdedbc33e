"""What the settings ask of pjsua2, against what the build in use has."""

from __future__ import annotations

from gateway.sip.library import Build
from gateway.sip.types import SipSettings


def unmet(settings: SipSettings, build: Build) -> list[str]:
    """What is asked for and not there: each line names the key and the library."""
    library = f"{build.distribution} (pjproject {build.version}, {build.path})"
    return [
        f"sip.listen: {listen.transport}:{listen.host}:{listen.port} needs TLS, and {library} "
        "was built without; `make pjsua2` builds one with the system's OpenSSL"
        for listen in settings.listen
        if listen.transport == "tls" and build.tls == "none"
    ]
