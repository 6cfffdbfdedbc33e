# SPDX-License-Identifier: GPL-2.0-or-later
"""Live sessions: whose answer a response of the backend is; where speech of the voice begins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio import Codec
from gateway.realtime import live_voice
from gateway.realtime.events import (
    AgentTranscript,
    AudioDelta,
    BackendEvent,
    CreateResponse,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    TrackWords,
)
from gateway.realtime.live_voice import (
    MAX_APPEND,
    MAX_ITEMS,
    MAX_QUESTIONS,
    NO_PLAYOUT,
    STUCK_SECONDS,
    Backend,
    Voice,
    answers,
    texts,
)
from tests.support.listening import noise


def question(text: str) -> CreateResponse:
    return CreateResponse(
        {"conversation": "none", "output_modalities": ["text"], "metadata": {"k": text}}
    )


def backend_event(kind: str, response_id: str = "", task: str = "") -> BackendEvent:
    return BackendEvent(task, {"type": kind, "response": {"id": response_id}})


def test_a_late_answer_is_that_of_the_question_it_was_begun_for() -> None:
    backend = Backend("gpt-5")
    first, second = question("first"), question("second")
    backend.ask(first)
    backend.ask(second)
    assert backend.next_question(0.0) is not None
    assert backend.on_event(backend_event("response.created", "resp_1")) == []
    assert backend.forget(first)
    assert backend.next_question(15.0) is not None, "and the one that hangs holds nothing"
    late = backend.on_event(backend_event("response.completed", "resp_1"))
    assert late[0] == ResponseCreated("resp_1", {"k": "first"})
    assert backend.on_event(backend_event("response.created", "resp_2")) == []
    assert backend.on_event(backend_event("response.failed", "resp_1")) == []
    answer = backend.on_event(backend_event("response.completed", "resp_2"))
    assert answer[0] == ResponseCreated("resp_2", {"k": "second"})


def test_a_question_is_not_asked_while_another_response_was_requested() -> None:
    """Else the answer to it would be said to the caller, and that response be its answer."""
    backend = Backend("gpt-5")
    assert backend.continue_response() != []
    backend.ask(question("first"))
    assert backend.next_question(0.0) is None
    (again,) = backend.on_event(backend_event("response.completed", "resp_1"))
    assert isinstance(again, ResponseDone)
    backend.found_later(backend_event("response.completed"), again)
    assert backend.next_question(1.0) is not None
    answer = backend.on_event(backend_event("response.completed", "resp_2"))
    assert answer[0] == ResponseCreated("resp_2", {"k": "first"})


def test_a_backend_that_hangs_holds_questions_for_a_minute() -> None:
    backend = Backend("gpt-5")
    backend.on_event(backend_event("response.created", "resp_1", "task_1"))
    first, second = question("first"), question("second")
    backend.ask(first)
    assert backend.next_question(0.0) is None
    backend.forget(first)
    backend.on_event(backend_event("response.in_progress", "resp_1", "task_1"))
    backend.ask(second)
    assert backend.next_question(40.0) is None
    assert backend.next_question(40.0 + STUCK_SECONDS - 0.1) is None
    assert backend.next_question(40.0 + STUCK_SECONDS) is not None
    # It goes on after all, and is the task's.
    (done,) = backend.on_event(backend_event("response.completed", "resp_1", "task_1"))
    assert isinstance(done, ResponseDone)


def test_functions_of_a_question_are_no_answers_of_the_conversation() -> None:
    backend = Backend("gpt-5")
    backend.ask(question("first"))
    assert backend.next_question(0.0) is not None
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    events = [
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "response.output_item.done", "item": call},
        {"type": "response.completed", "response": {"id": "resp_1"}},
    ]
    found = [one for event in events for one in backend.on_event(BackendEvent("", event))]
    assert isinstance(found[1], ResponseDone)
    assert [one["type"] for one in backend.refuse_functions(found[1])] == ["response.item.create"]
    # The result of a call that an earlier session made: nobody but us tells the voice of it.
    backend.answer({"type": "function_call_output", "call_id": "call_0", "output": "4 pm"})
    assert [one["type"] for one in backend.continue_response()] == ["response.create"]
    message = {"type": "message", "content": [{"type": "output_text", "text": "At four."}]}
    later = BackendEvent("", {"type": "response.completed", "response": {"output": [message]}})
    (done,) = backend.on_event(later)
    assert isinstance(done, ResponseDone)
    assert backend.found_later(later, done) == "At four."


VOICE = noise(5, 0.4)


class Track:
    def __init__(self) -> None:
        self.events: list[ServerEvent] = []
        self.voice = Voice(Codec.PCMU, NO_PLAYOUT, self.events.append)
        self.now = 0.0

    def play(self, audio: bytes) -> None:
        for at in range(0, len(audio), 160):
            self.now += 0.02
            self.voice.feed(audio[at : at + 160], self.now)

    def silence(self, ms: int) -> None:
        self.play(b"\xff" * 8 * ms)

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.events if isinstance(one, kind)]


def test_a_pause_after_a_stopped_briefing_does_not_cut_what_the_caller_hears() -> None:
    track = Track()
    track.voice.brief(CreateResponse({"conversation": "none", "metadata": {"k": "b"}}, "A caller"))
    track.play(VOICE)
    track.silence(1600)
    assert len(track.of(ResponseDone)) == 1
    track.voice.end_briefing(track.now)
    track.silence(2000)  # nothing came that was to be dropped
    track.play(VOICE)
    track.silence(400)
    track.play(VOICE)
    track.silence(700)
    assert len(track.of(ResponseCreated)) == len(track.of(ResponseDone)) == 2


def test_speech_dropped_after_a_stopped_briefing_has_no_words_and_no_end() -> None:
    track = Track()
    track.voice.brief(CreateResponse({"conversation": "none", "metadata": {"k": "b"}}, "A caller"))
    track.voice.end_briefing(track.now)
    track.silence(500)
    track.play(VOICE)
    track.voice.words(TrackWords(True, "A caller about a bill.", 520, 900), track.now)
    track.voice.over()
    track.voice.tell_complete(track.now + 5, all=True)
    assert track.events == []


def test_a_briefing_requested_at_once_does_not_begin_with_the_rest_of_the_one_before() -> None:
    track = Track()

    def brief(name: str) -> None:
        response = {"conversation": "none", "metadata": {"k": name}}
        track.voice.brief(CreateResponse(response, "A caller"))

    brief("first")
    track.play(VOICE)
    track.voice.end_briefing(track.now)
    brief("second")
    track.play(VOICE)  # it has not stopped yet
    track.silence(300)
    track.play(VOICE)
    track.silence(1000)
    track.play(VOICE)
    track.silence(1600)
    assert [one.metadata for one in track.of(ResponseCreated)] == [{"k": "first"}, {"k": "second"}]
    assert len(track.of(ResponseDone)) == 2
    second = track.of(ResponseCreated)[1].response_id
    said = b"".join(one.audio for one in track.of(AudioDelta) if one.response_id == second)
    assert said.count(VOICE) == 2


def test_words_from_before_the_first_speech_leave_the_present_one_alone() -> None:
    track = Track()
    track.silence(2000)
    track.play(VOICE)
    track.voice.words(TrackWords(True, "Mhm.", 0, 0), track.now)
    track.play(VOICE)
    track.silence(700)
    (created,) = track.of(ResponseCreated)
    assert [one.response_id for one in track.of(ResponseDone)] == [created.response_id]
    assert {one.response_id for one in track.of(AudioDelta)} == {created.response_id}
    track.voice.tell_complete(track.now + 5, all=True)
    assert [one.transcript for one in track.of(AgentTranscript)] == ["Mhm."]


# ---- texts to the voice


@given(st.text(alphabet="ab \u4f60\U0001f600", max_size=60), st.integers(4, 12))
def test_texts_are_cut_into_pieces_that_the_server_takes(text: str, most: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(live_voice, "MAX_APPEND", most)
        pieces = [one["content"] for one in texts("commentary", text)]
    assert all(0 < len(piece.encode()) <= most for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_a_long_word_in_the_middle_is_cut_too() -> None:
    """As an address in what a function has found."""
    address = "https://example/" + "x" * (2 * MAX_APPEND)
    pieces = [one["content"] for one in texts("thinking", f"See {address} for more.")]
    assert max(len(piece) for piece in pieces) == MAX_APPEND
    assert pieces[0] == "See"
    assert pieces[-1].endswith("x for more.")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ('"At four."', [("commentary", "At four.")]),
        ("At four.", [("commentary", "At four.")]),
        ('{"thinking": "16:00", "commentary": "At four."}', [
            ("thinking", "16:00"), ("commentary", "At four."),
        ]),
        ('{"commentary": 4, "thinking": "16:00"}', [("thinking", "16:00")]),
        ('{"at": 4}', [("thinking", '{"at": 4}')]),
        ("4", [("thinking", "4")]),
        ('""', []),
    ],
)  # fmt: skip
def test_a_result_is_said_or_known(output: str, said: list[tuple[str, str]]) -> None:
    found = answers(output, "task_1")
    assert [(one["type"].split(".")[1], one["content"]) for one in found] == said
    assert {one["delegation_id"] for one in found} <= {"task_1"}


# ---- bounds of the backend


def test_events_that_are_wrong_or_too_many_are_survived() -> None:
    backend = Backend("gpt-5")
    for odd in ({}, {"type": 7}, {"type": "response.created", "response": [1]}):
        assert backend.on_event(BackendEvent("", odd)) == []
    item = {"type": "response.output_item.done", "item": {"type": "message"}}
    for _ in range(MAX_ITEMS + 5):
        assert backend.on_event(BackendEvent("", item)) == []
    (done,) = backend.on_event(BackendEvent("", {"type": "response.failed", "error": 1}))
    assert isinstance(done, ResponseDone)
    assert (done.status, len(done.output)) == ("failed", MAX_ITEMS)
    for number in range(MAX_QUESTIONS + 5):
        backend.ask(question(str(number)))
    asked = 0
    while (found := backend.next_question(0.0)) is not None:
        asked += 1
        assert backend.forget(found[0])
    assert asked == MAX_QUESTIONS
    assert not backend.forget(question("unknown"))
    assert not backend.forget(None)
