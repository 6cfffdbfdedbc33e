# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio at 24 kHz keeps its time; commands are matched to what answers them, or sent again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.audio import G711, Codec
from gateway.realtime.dialects import GA
from gateway.realtime.events import (
    ClientCommand,
    CreateResponse,
    DeleteItem,
    ResponseCreated,
    ServerError,
    UpdateSession,
)
from gateway.realtime.wire import (
    DELAY_MS,
    MAX_METADATA,
    REQUEST_KEY,
    Edge,
    Linear24,
    Pcm24,
    SentCommands,
    resampling,
    with_pcm,
)

ULAW, ALAW = {"type": "audio/pcmu"}, {"type": "audio/pcma"}


def tone(rate: int, seconds: float, hz: float = 440.0) -> np.ndarray[Any, Any]:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype("<i2")


def later_ms(samples: np.ndarray[Any, Any], rate: int, hz: float = 440.0) -> float:
    """How much later than :func:`tone` this is, by its phase; asserts that it is as loud."""
    middle = slice(len(samples) // 5, len(samples) // 5 + rate // 2)
    wave = np.exp(2j * np.pi * hz * np.arange(len(samples))[middle] / rate)
    level = 2 * (samples[middle] * wave.conj()).mean()
    assert abs(level) == pytest.approx(8000, rel=0.02)
    return float(-np.angle(level * 1j) / (2 * np.pi * hz) * 1000)


@pytest.mark.parametrize("law", list(G711))
def test_an_answer_keeps_its_time(law: Codec) -> None:
    """Sample n at 8 kHz is sample 3 n at 24 kHz, however the pieces are cut."""
    wire = tone(24000, 1.0).tobytes()
    pcm = Pcm24(law)
    for _ in range(2):  # the second part begins anew
        sizes = [1, 2, 3, 999, 4801, 9600, 7]
        made, at, turn = b"", 0, 0
        while at < len(wire):
            made += pcm.down(wire[at : at + sizes[turn % len(sizes)]])
            at += sizes[turn % len(sizes)]
            turn += 1
        made += pcm.part_over()
        assert len(made) == 8000
        assert abs(later_ms(np.frombuffer(law.to_linear(made), np.int16), 8000)) < 0.25


@given(st.lists(st.integers(0, 3000), max_size=6))
def test_whole_milliseconds_are_those_of_the_server(sizes: list[int]) -> None:
    pcm = Pcm24(Codec.PCMU)
    made, total = 0, 0
    for size in sizes:
        made += len(pcm.down(bytes(size)))
        total += size
        assert made <= total // 6
    made += len(pcm.part_over())
    assert made == total // 6
    assert made // 8 == total // 48


def test_the_caller_is_held_back_by_the_same_always() -> None:
    pcm = Pcm24(Codec.PCMA)
    said = Codec.PCMA.from_linear(tone(8000, 1.0).tobytes())
    sent = [pcm.up(said[i : i + 160]) for i in range(0, 8000, 160)]
    assert {len(piece) for piece in sent[3:]} == {960}
    wire = np.frombuffer(b"".join(sent), "<i2")
    assert len(wire) == 24 * (1000 - DELAY_MS)
    assert abs(later_ms(wire, 24000)) < 0.25


def test_wide_audio_keeps_its_samples_whole() -> None:
    linear = Linear24()
    samples = np.arange(300, dtype="<i2").tobytes()
    pieces = [linear.down(samples[at : at + 7]) for at in range(0, 100, 7)]
    assert b"".join(pieces) == samples[:104]
    assert linear.part_over() == b"", "the half sample goes with its part"
    assert linear.down(samples[:4]) == samples[:4]
    assert linear.up(samples) == samples


@pytest.mark.parametrize(
    ("audio", "codec", "kind"),
    [
        ("g711", Codec.PCMU, type(None)),
        ("pcm24", Codec.PCMA, Pcm24),
        ("pcm24", Codec.G722, Linear24),
        ("g711", Codec.OPUS, Linear24),
    ],
)
def test_only_calls_that_need_it_are_resampled(audio: Any, codec: Codec, kind: type) -> None:
    with capture_logs() as logs:
        assert type(resampling(audio, codec)) is kind
    assert len(logs) == (kind is Pcm24)


PCM = {"type": "audio/pcm", "rate": 24000}


def test_formats_that_are_named_become_pcm_and_no_other() -> None:
    asked = {
        "type": "session.update",
        "session": {
            "voice": 1,
            "audio": {"input": {"format": ULAW, "a": 1}, "output": {"voice": "v"}, "odd": None},
        },
    }
    found = with_pcm(asked)
    assert found["session"] == {
        "voice": 1,
        "audio": {"input": {"format": PCM, "a": 1}, "output": {"voice": "v"}, "odd": None},
    }
    assert asked["session"]["audio"]["input"]["format"] == ULAW  # type: ignore[index]
    for odd in ({"session": None}, {"response": {"audio": "loud"}}, {"type": "x"}):
        assert with_pcm(odd) == odd
    response = {"response": {"audio": {"output": {"format": ULAW}}}}
    assert with_pcm(response) == {"response": {"audio": {"output": {"format": PCM}}}}


@pytest.mark.parametrize(("audio", "confirmed"), [("g711", "audio/pcma"), ("pcm24", "audio/pcm")])
def test_the_server_has_to_confirm_the_format_that_was_asked_for(
    audio: Any, confirmed: str
) -> None:
    session = {"audio": {"input": {"format": ALAW}, "output": {}}}
    edge = Edge(GA, audio, session)
    assert edge.format_on_wire(session, "input") == confirmed
    assert edge.format_on_wire(session, "output") is None
    assert edge.pcm is None or getattr(edge.pcm, "codec", None) is Codec.PCMA


def sent(*commands: ClientCommand) -> tuple[SentCommands, list[str]]:
    """Commands that were sent, and their ids."""
    made = SentCommands([], "sess_1")
    ids = [made.next_id() for _ in commands]
    for event_id, command in zip(ids, commands, strict=True):
        made.remember(event_id, command)
    return made, ids


def error(event_id: str, param: str | None, message: str = "No.") -> ServerError:
    return ServerError("c", message, "invalid_request_error", param, event_id)


def test_only_the_last_commands_are_remembered() -> None:
    commands, ids = sent(*(DeleteItem(f"item_{i}") for i in range(300)))
    assert ids[:2] == ["gw_1", "gw_2"]
    found = [commands.command_of(event_id) for event_id in ids]
    assert found == [None] * 44 + [DeleteItem(f"item_{i}") for i in range(44, 300)]
    assert commands.command_of(None) is None


def test_a_request_is_known_by_its_response() -> None:
    request = CreateResponse({"metadata": {"a": "b"}})
    commands, (event_id,) = sent(request)
    body = commands.body_of(request, event_id)
    assert body["response"]["metadata"] == {"a": "b", REQUEST_KEY: event_id}
    assert request.response == {"metadata": {"a": "b"}}, "which is not changed"
    answers = [dict(body["response"]["metadata"]), {}, {REQUEST_KEY: 7}, {REQUEST_KEY: "gw_9"}]
    found = [commands.request_of(ResponseCreated("r", one)) for one in answers]
    assert found == [request, None, None, None]
    full = CreateResponse({"metadata": {str(n): "" for n in range(MAX_METADATA)}})
    assert commands.body_of(full, "gw_2")["response"] == full.response


def test_metadata_that_a_server_rejects_is_left_out_once_and_for_all() -> None:
    plain, own = CreateResponse(), CreateResponse({"metadata": {"a": "b"}})
    commands, (first, second, other) = sent(plain, plain, DeleteItem("i"))
    assert commands.without_metadata(error(other, "response.metadata")) is None
    assert commands.without_metadata(error(first, "response.voice")) is None
    assert commands.without_metadata(error(first, "response.metadata")) is plain
    assert "response" not in commands.body_of(plain, "gw_3")
    assert commands.without_metadata(error(second, "response.metadata")) is None, "it had none"
    commands, (event_id,) = sent(own)
    assert commands.without_metadata(error(event_id, "response.metadata")) is None, (
        "its own may be what is wrong"
    )


def test_an_update_is_sent_again_once_without_the_field_that_was_refused() -> None:
    update = UpdateSession({"type": "realtime", "truncation": "auto", "instructions": "x"})
    commands, (event_id,) = sent(update)
    again = commands.without_refused_field(error(event_id, "session.truncation", "no  \n such"))
    assert again == UpdateSession({"type": "realtime", "instructions": "x"})
    assert [(one.field, one.message) for one in commands.refused] == [("truncation", "no such")]
    assert commands.without_refused_field(error(event_id, "session.instructions")) is None
    assert len(commands.refused) == 1
    commands, (alone, unknown) = sent(
        UpdateSession({"type": "realtime", "truncation": "auto"}), UpdateSession({"a": 1})
    )
    assert commands.without_refused_field(error(alone, "session.truncation")) is None, "no rest"
    assert [one.field for one in commands.refused] == ["truncation"]
    assert commands.without_refused_field(error(unknown, None, "What?")) is None
    assert commands.without_refused_field(error("gw_99", "session.a")) is None


def test_a_voice_that_is_locked_is_not_asked_for() -> None:
    commands, _ids = sent()
    asked = UpdateSession({"instructions": "x", "audio": {"output": {"voice": "b", "speed": 1}}})
    in_force = {"audio": {"output": {"voice": "a"}}}
    assert commands.without_locked_voice(asked, in_force) is asked
    commands.voice_locked = True
    assert commands.without_locked_voice(asked, {"audio": {"output": {"voice": "b"}}}) is asked
    assert commands.without_locked_voice(DeleteItem("i"), in_force) == DeleteItem("i")
    assert commands.without_locked_voice(asked, in_force) == UpdateSession(
        {"instructions": "x", "audio": {"output": {"speed": 1}}}
    )
