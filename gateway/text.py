"""Texts of strangers: what may be kept of them, and how they are shown."""

from __future__ import annotations

import re

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def unicode_of(text: str) -> str:
    """``text`` with U+FFFD for what is no character: bytes that were no UTF-8, half a pair.

    pjsua2 hands such bytes on as lone surrogates, JSON may have them as escapes; no encoder takes
    them.
    """
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
