# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that functions send: what is one, and how large it may be."""

from __future__ import annotations

import base64

import pytest

from gateway.tools import MAX_BYTES, ImageError, checked_data_uri, data_uri

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://h/x.png", "must be a data URI"),
        ("data:image/gif;base64,AAAA", "must be image/png or image/jpeg"),
        ("data:image/png;base64,$$$$", "is no base64"),
        ("data:image/jpeg;base64," + base64.b64encode(PNG).decode(), "its bytes do not"),
        ("data:image/png;base64," + "A" * (2 * MAX_BYTES), "more than"),
    ],
)
def test_what_is_no_image_is_refused(uri: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        checked_data_uri(uri)


def test_images_are_known_by_their_bytes() -> None:
    assert checked_data_uri(data_uri(PNG)) == data_uri(PNG)
    assert data_uri(b"\xff\xd8\xff" + bytes(9)).startswith("data:image/jpeg;base64,")
    with pytest.raises(ImageError, match="neither PNG nor JPEG"):
        data_uri(b"GIF89a")
    with pytest.raises(ImageError, match="are allowed"):
        data_uri(PNG + bytes(MAX_BYTES))
