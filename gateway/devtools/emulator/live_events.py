# SPDX-License-Identifier: GPL-2.0-or-later
"""Client events of the Live protocol, as strict models.

``session.input_audio.append`` is not among them: it comes fifty times a second and has a path of
its own.
"""

from __future__ import annotations

import binascii
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from gateway.devtools.emulator.client_events import ClientEvent, by_type
from gateway.devtools.emulator.live_config import tokens, too_long
from gateway.devtools.emulator.live_delegation import Delegations
from gateway.devtools.emulator.objects import ProtocolError

MAX_APPEND_TOKENS = 500
MAX_FIXTURE_S = 30
FIXTURE_RATE = 24_000


def fixture_pcm(audio: str) -> bytes:
    """The samples of a ``fixture.play``. Raises :class:`ProtocolError` (``invalid_audio``)."""
    try:
        pcm = binascii.a2b_base64(audio, strict_mode=True)
    except ValueError:
        raise ProtocolError("invalid_audio", "'audio' is not valid base64.", "audio") from None
    if not pcm or len(pcm) % 2:
        text = "'audio' must be raw mono PCM16 with a whole number of samples."
        raise ProtocolError("invalid_audio", text, "audio")
    if len(pcm) > 2 * FIXTURE_RATE * MAX_FIXTURE_S:
        raise ProtocolError("invalid_audio", "'audio' is longer than 30 seconds.", "audio")
    return pcm


class Actions(Protocol):
    """What client events do to a Live session. Each may raise ``ProtocolError``."""

    def start(self, session: object) -> None: ...
    def update(self, session: object) -> None: ...
    def mute(self, *, on: bool) -> None: ...
    def play_fixture(self, pcm: bytes) -> None: ...
    def append_text(self, kind: TextKind, content: str, delegation_id: str | None) -> None: ...
    def close(self) -> None: ...

    delegations: Delegations


TextKind = Literal["instructions", "thinking", "commentary"]


class LiveEvent(ClientEvent):
    """What all have in common."""

    def apply(self, session: Any) -> None:
        self.act(session)

    def act(self, session: Actions) -> None:
        raise NotImplementedError


class Start(LiveEvent):
    type: Literal["session.start"]
    session: dict[str, Any]

    def act(self, session: Actions) -> None:
        session.start(self.session)


class Update(LiveEvent):
    type: Literal["session.update"]
    session: dict[str, Any]

    def act(self, session: Actions) -> None:
        session.update(self.session)


class Mute(LiveEvent):
    type: Literal["session.input_audio.mute", "session.input_audio.unmute"]

    def act(self, session: Actions) -> None:
        session.mute(on=self.type.endswith(".mute"))


class PlayFixture(LiveEvent):
    type: Literal["session.output_audio.fixture.play"]
    audio: str

    def act(self, session: Actions) -> None:
        session.play_fixture(fixture_pcm(self.audio))


class AppendText(LiveEvent):
    type: Literal[
        "session.instructions.append", "session.thinking.append", "session.commentary.append"
    ]
    content: str = Field(min_length=1)
    delegation_id: str | None
    """Required, though it may be null."""

    def act(self, session: Actions) -> None:
        if tokens(self.content) > MAX_APPEND_TOKENS:
            too_long("content", MAX_APPEND_TOKENS)
        kind = self.type.split(".")[1]
        session.append_text(kind, self.content, self.delegation_id)  # type: ignore[arg-type]


class CreateItem(LiveEvent):
    type: Literal["response.item.create"]
    item: dict[str, Any]

    def act(self, session: Actions) -> None:
        session.delegations.add_item(self.item)


class CreateResponse(LiveEvent):
    type: Literal["response.create"]

    def act(self, session: Actions) -> None:
        session.delegations.proceed()


class CreateDecision(LiveEvent):
    type: Literal["decision.create"]
    event_id: Annotated[str, Field(min_length=1, max_length=512)]

    def act(self, session: Actions) -> None:
        session.delegations.decide(self.event_id)


class CreateDecisionItem(LiveEvent):
    type: Literal["decision.item.create"]
    item: dict[str, Any]

    def act(self, session: Actions) -> None:
        session.delegations.add_decision_item(self.item)


class DeleteDecisionItem(LiveEvent):
    type: Literal["decision.item.delete"]
    item_id: str

    def act(self, session: Actions) -> None:
        session.delegations.delete_decision_item(self.item_id)


class Close(LiveEvent):
    type: Literal["session.close"]

    def act(self, session: Actions) -> None:
        session.close()


LIVE_EVENTS = by_type(LiveEvent.__subclasses__())
