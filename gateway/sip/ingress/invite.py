# SPDX-License-Identifier: GPL-2.0-or-later
"""From an INVITE as it came to the facts that routes and records need."""

from __future__ import annotations

from gateway.sip.ingress.message import (
    display_name_of,
    headers_of,
    request_uri_of,
    uri_of,
    user_of,
)
from gateway.sip.sdp import offered_codecs
from gateway.sip.types import Invite


def invite_of(message: str, source: str) -> Invite:
    """The facts of an INVITE."""
    headers = headers_of(message)
    to_field = next(iter(headers.get("to", ())), "")
    from_field = next(iter(headers.get("from", ())), "")
    to_uri = request_uri_of(message) or uri_of(to_field)
    from_uri = uri_of(from_field)
    return Invite(
        sip_call_id=next(iter(headers.get("call-id", ())), ""),
        to_uri=to_uri,
        from_uri=from_uri,
        to_user=user_of(to_uri),
        from_user=user_of(from_uri),
        from_name=display_name_of(from_field),
        source=source,
        headers=headers,
        offered=offered_codecs(message),
    )
