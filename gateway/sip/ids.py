"""Names that the gateway gives to calls."""

from __future__ import annotations

import secrets


def new_call_id() -> str:
    """The gateway's own id of a call: 16 hexadecimal digits.

    The SIP Call-ID is the caller's choice: two calls may have the same, and it may be longer, or
    look otherwise, than file names, commands and logs can take.
    """
    return secrets.token_hex(8)
