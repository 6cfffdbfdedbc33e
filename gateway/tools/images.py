# SPDX-License-Identifier: GPL-2.0-or-later
"""Images for the model: PNG or JPEG, in a data URI (RFC 2397), bounded in size."""

from __future__ import annotations

import base64
import binascii
import re

MAX_BYTES = 512 * 1024
"""Of one image. It goes to the server between two packets of the caller's voice, which wait for
it: on a line of 10 Mbit/s for half a second."""

_KINDS = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_URI = re.compile(r"data:([a-z]+/[a-z.+-]+);base64,", re.IGNORECASE)


class ImageError(ValueError):
    """This is no image that the model can be shown; the message says why."""


def data_uri(image: bytes) -> str:
    """The data URI of a PNG or JPEG. Raises ImageError."""
    if len(image) > MAX_BYTES:
        raise ImageError(f"the image has {len(image)} bytes; {MAX_BYTES} are allowed")
    kind = next((kind for kind, magic in _KINDS.items() if image.startswith(magic)), None)
    if kind is None:
        raise ImageError("the image is neither PNG nor JPEG")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def checked(uri: str) -> str:
    """A data URI, made anew from what is in it. Raises ImageError."""
    head = _URI.match(uri)
    if head is None:
        raise ImageError("the image must be a data URI: data:image/png;base64,...")
    kind = head[1].lower()
    if kind not in _KINDS:
        raise ImageError(f"the image is {kind}; it must be image/png or image/jpeg")
    if len(uri) > MAX_BYTES * 4 // 3 + 64:
        raise ImageError(f"the image has more than {MAX_BYTES} bytes")
    try:
        image = base64.b64decode(uri[head.end() :], validate=True)
    except binascii.Error:
        raise ImageError("the data URI is no base64") from None
    if not image.startswith(_KINDS[kind]):
        raise ImageError(f"the data URI says {kind}, and its bytes do not")
    return data_uri(image)
