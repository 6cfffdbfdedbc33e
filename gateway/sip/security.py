"""What protects a call: its signalling's transport, and the SRTP that was negotiated."""

from __future__ import annotations

import re
from typing import Any

import pjsua2 as pj

_STATUS = re.compile(r"SRTP status: (Active|Not active) Crypto-suite: (\S*)")

PLAIN = "rtp"


def media_security(call: Any, stream: Any) -> str:
    """``rtp``, or ``srtp`` with its keying and crypto suite: ``srtp sdes AES_CM_128_HMAC_SHA1_80``.

    Empty while keys are still agreed by DTLS, which begins with the answer. Read from the library's
    own account of the call, the only place where both builds tell it.

    Args:
        stream: the call's ``StreamInfo``.
    """
    by_dtls = int(stream.proto) & pj.PJMEDIA_TP_PROTO_DTLS
    match = _STATUS.search(str(call.dump(True, "")))
    if match is None or match[1] != "Active":
        return "" if by_dtls else PLAIN
    return f"srtp {'dtls' if by_dtls else 'sdes'} {match[2]}"
