# SPDX-License-Identifier: GPL-2.0-or-later
"""An image is an item like any other, and costs tokens that the next response has cached."""

from __future__ import annotations

from gateway.devtools.emulator import Emulator
from tests.support.emulator_client import PCMU_SESSION, session, with_emulator


def test_images_are_counted_and_cached() -> None:
    async def test(emulator: Emulator) -> None:
        async with session(emulator) as client:
            await client.update({**PCMU_SESSION, "output_modalities": ["text"]})
            part = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
            item = {"type": "message", "role": "user", "content": [part]}
            await client.send("conversation.item.create", item=item)
            for cached in (0, 765):
                usage = (await client.answered())["usage"]
                details = usage["input_token_details"]
                assert details["image_tokens"] == 765
                assert details["cached_tokens_details"]["image_tokens"] == cached
                kinds = ("text_tokens", "audio_tokens", "image_tokens")
                assert usage["input_tokens"] == sum(details[kind] for kind in kinds)
                assert details["cached_tokens"] == sum(
                    details["cached_tokens_details"][kind] for kind in kinds
                )
            part["image_url"] = "https://example.com/a.png"
            await client.send("conversation.item.create", item=item)
            assert (await client.error())["param"] == "item.content[0].image_url"

    with_emulator(test)
