# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated callers and judges against the emulator's text model, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI

from gateway.devtools.call_suites import Judge, Persona, TextModel
from gateway.devtools.call_suites.simulated import (
    Budget,
    Conversation,
    Model,
    ModelError,
    SimulatedCaller,
    marks_of,
)
from gateway.devtools.call_suites.verdicts import Mark, Said
from gateway.devtools.emulator.dialogue import TextModel as Server
from gateway.devtools.emulator.script import Script
from gateway.devtools.scripted_caller import Span

ASK = [{"role": "system", "content": "x"}, {"role": "user", "content": "Hello."}]
JUDGE = Judge.model_validate(
    {"criteria": {"kind": {"question": "Kind?"}, "true": {"question": "?", "at_least": 9}}}
)
TALK = [Said("caller", "A room."), Said("agent", "Yes.")]


class Agent:
    """What a simulated caller needs of a call; it says the same again and again."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def turn(self, _within: float, _pause_ms: int) -> Span | None:
        return Span(from_ms=0, to_ms=100)

    async def speak(self, clip: Any) -> None:
        self.heard.append(clip.name)


def served(script: dict[str, Any], work: Callable[[str, Server], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        server = Server(lambda: Script.model_validate(script))
        port = await server.start()
        try:
            return await work(f"http://127.0.0.1:{port}/v1", server)
        finally:
            await server.stop()

    return asyncio.run(run())


def test_openais_client_takes_both_answers() -> None:
    async def work(url: str, _server: Server) -> tuple[str | None, str]:
        async with AsyncOpenAI(base_url=url, api_key="x") as client:
            asked: Any = ASK
            chat = await client.chat.completions.create(model="m", messages=asked)
            made = await client.responses.create(model="m", input=asked)
            assert chat.usage is not None
            assert chat.usage.total_tokens == chat.usage.prompt_tokens + 1
            return chat.choices[0].message.content, made.output_text

    assert served({"text_replies": ["Hm."]}, work) == ("Hm.", "Hm.")


def talk(
    script: dict[str, Any], heard: str | None = "How can I help?", **limits: Any
) -> tuple[Conversation, Agent]:
    persona = Persona.model_validate({"persona": "Vera", "goal": "a room", **limits})
    agent = Agent()

    async def hear(_span: Span) -> str | None:
        return heard

    async def work(url: str, _server: Server) -> Conversation:
        caller = SimulatedCaller(persona, Model(TextModel(url=url)), hear)
        await caller.talk(agent)  # type: ignore[arg-type]
        return caller.conversation

    return served(script, work), agent


REACHED = {"text_replies": ["A room, please.", "Thank you. Goodbye. [DONE]"]}


def test_a_goal_is_reached_by_turns() -> None:
    conversation, agent = talk(REACHED)
    assert agent.heard == ["A room, please.", "Thank you. Goodbye."]
    assert conversation.reached
    assert conversation.turns == 2
    verdict = conversation.verdict(Persona(persona="Vera", goal="a room"))
    assert (verdict.mark, verdict.wanted) == (Mark.PASSED, "a room")
    assert [one.who for one in conversation.said] == ["agent", "caller"] * 2


@pytest.mark.parametrize(
    ("script", "limits", "heard", "end"),
    [
        ({"text_replies": ["No? Goodbye. [GIVE UP]"]}, {}, "We are full.", "given up"),
        ({"text_replies": ["Hm."]}, {"max_turns": 3}, "x", "max_turns, 3, were over"),
        ({"text_replies": ["Hm."]}, {"max_tokens": 200}, "x", "max_tokens of the call, 200"),
        ({"text_replies": [""]}, {}, "x", "chat/completions: the reply is empty"),
        (REACHED, {}, None, "the agent is not understood"),
    ],
)
def test_a_goal_is_missed(
    script: dict[str, Any], limits: dict[str, Any], heard: str | None, end: str
) -> None:
    conversation, _agent = talk(script, heard, **limits)
    assert not conversation.reached
    assert conversation.end.startswith(end)
    assert conversation.turns <= 3


def test_the_tokens_of_all_calls_are_bounded() -> None:
    async def work(url: str, server: Server) -> int:
        model = Model(TextModel(url=url, max_tokens=1))
        await model.reply(ASK, Budget(1000))
        with pytest.raises(ModelError, match=r"\[model\]"):
            await model.reply(ASK, Budget(1000))
        return server.requests

    assert served({}, work) == 1


def judged(script: dict[str, Any], api: str = "chat") -> list[Any]:
    async def work(url: str, _server: Server) -> list[Any]:
        settings = TextModel.model_validate({"url": url, "api": api})
        return await marks_of(JUDGE, Model(settings), TALK)

    found: list[Any] = served(script, work)
    return found


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_judge_marks_each_criterion(api: str) -> None:
    kind, true = judged({"text_scores": {"kind": 7.5}}, api)
    assert (kind.name, kind.mark, kind.found) == ("judge: kind", Mark.PASSED, "7.5: by the script")
    assert (true.name, true.mark, true.wanted) == ("judge: true", Mark.FAILED, "at least 9 of 10")


def test_a_judge_who_gives_no_score_fails_the_call() -> None:
    kind, true = judged({"text_scores": {"kind": 11}})
    assert kind.mark is true.mark is Mark.FAILED
    assert "no score" in kind.found


def test_a_model_that_is_not_there_fails_the_call() -> None:
    model = Model(TextModel(url="http://127.0.0.1:9/v1", api_key="sk-secret"))
    kind, _true = asyncio.run(marks_of(JUDGE, model, TALK))
    assert kind.mark is Mark.FAILED
    assert "ConnectError" in kind.found
    assert "sk-secret" not in kind.found


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "no reply within 0.2 s"),
        ("401 X", "401: Incorrect API key provided: ***"),
        ("200 OK", "the reply has no text or no usage"),
    ],
)
def test_what_a_server_answers_is_told_without_the_key(answer: str | None, why: str) -> None:
    body = b'{"error": {"message": "Incorrect API key provided: sk-secret"}}'

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is not None:
            head = f"HTTP/1.1 {answer}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)

    async def run() -> list[Any]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            settings = TextModel(
                url=url, api_key="sk-secret", timeout=0.2 if answer is None else 20
            )
            return await marks_of(JUDGE, Model(settings), TALK)

    kind, _true = asyncio.run(run())
    assert (kind.mark, kind.found) == (Mark.FAILED, f"chat/completions: {why}")
