# SPDX-License-Identifier: GPL-2.0-or-later
"""What pjsua2 says of itself, as JSON: ``python -m gateway.sip.probe``.

A process of its own, since a library that does not fit the machine may take its process along.
No port is bound.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pjsua2 as pj

from gateway.sip import library
from gateway.sip.endpoint import configure_media, endpoint_config
from gateway.sip.settings import SipSettings


class _Quiet(pj.LogWriter):  # type: ignore[misc]
    def write(self, entry: Any) -> None:
        """Nothing of pjsip's own log belongs in the report."""


def main() -> None:
    """Start an endpoint with a null device, look, and end it."""
    settings = SipSettings(listen=(), log_level=0)
    library.quieten()
    endpoint, writer = pj.Endpoint(), _Quiet()
    endpoint.libCreate()
    config = endpoint_config(settings, writer)
    configure_media(config.medConfig, settings)
    endpoint.libInit(config)
    endpoint.audDevManager().setNullDev()
    found = {
        "build": asdict(library.build()),
        "capacity": library.capacity(),
        "trunks": library.account_capacity() - 1,
    }
    endpoint.libDestroy()
    for held in (endpoint, writer):
        held.this.disown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
