# SPDX-License-Identifier: GPL-2.0-or-later
"""Credentials as a telephone makes them, by RFC 7616 and not by the code under test."""

from __future__ import annotations

import hashlib
import re

HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


def answer(
    challenge: str,
    *,
    method: str = "INVITE",
    username: str = "desk",
    password: str = "secret",
    nc: str = "00000001",
    uri: str = "sip:1@h",
    **changed: str,
) -> str:
    """The value of Authorization in answer to a value of WWW-Authenticate."""
    told = dict(re.findall(r'(\w+)="?([^",]+)"?', challenge.removeprefix("Digest ")))
    made = HASHES[told["algorithm"]]

    def h(text: str) -> str:
        return made(text.encode()).hexdigest()

    first = h(f"{username}:{told['realm']}:{password}")
    second = h(f"{method}:{uri}")
    nonce = told["nonce"]
    fields = {
        "username": f'"{username}"',
        "realm": f'"{told["realm"]}"',
        "nonce": f'"{nonce}"',
        "uri": f'"{uri}"',
        "response": f'"{h(f"{first}:{nonce}:{nc}:xyz:auth:{second}")}"',
        "algorithm": told["algorithm"],
        "cnonce": '"xyz"',
        "qop": "auth",
        "nc": nc,
        **changed,
    }
    return "Digest " + ", ".join(f"{key}={value}" for key, value in fields.items() if value)
