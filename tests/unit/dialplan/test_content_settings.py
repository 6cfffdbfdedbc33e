# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dialplan says of a call's content, images, and questions about words over HTTP."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from gateway.call.plan import GuardrailPlan
from gateway.config import ConfigError
from gateway.dialplan import Route, load_dialplan
from gateway.planning.route_tools import content_plan
from gateway.tools import MAX_BYTES, ImageError, ToolCall, checked_data_uri, data_uri, http
from gateway.tools.http import HttpClient
from tests.support.http_service import Answer, http_service


def route_of(folder: Path, text: str) -> Route:
    (folder / "r.toml").write_text(f'[[route]]\nname = "r"\n{text}', encoding="utf-8")
    (route,) = load_dialplan(folder, {}).routes
    return route


@pytest.mark.parametrize(
    ("text", "fits", "not_fits"),
    [
        ('words = ["a b", "c++"]', ["an A  B, c", "in C++."], ["ab", "xa b", "c+ +"]),
        ("pattern = '\\d{4}'", ["pin 1234"], ["pin 123"]),
        ('words = ["größe"]', ["Die GRÖSSE", "GRÖßE"][1:], ["größen"]),
    ],
)
def test_words_are_whole_and_of_any_case(
    tmp_path: Path, text: str, fits: list[str], not_fits: list[str]
) -> None:
    (rule,) = content_plan(
        route_of(tmp_path, f'[[route.guardrail]]\nname = "g"\n{text}'), {}
    ).guardrails
    assert rule.pattern is not None
    assert [one for one in fits if not rule.pattern.search(one)] == []
    assert [one for one in not_fits if rule.pattern.search(one)] == []


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (
            'guardrail = [{ name = "g", words = ["a"] }, { name = "g", words = ["b"] }]',
            "guardrail[1].name",
            "is used twice",
        ),
        (
            'fallback = [{ action = "busy" }, { action = "reconnect" }]',
            "fallback[1].action",
            'is never reached: the "busy" before it ends the call',
        ),
        ('guardrail = [{ name = "g" }]', "guardrail[0].words", "is needed, or pattern, or url"),
        (
            'guardrail = [{ name = "g", words = ["a"], pattern = "a" }]',
            "guardrail[0].pattern",
            "exclude",
        ),
        (
            'guardrail = [{ name = "g", pattern = "a*" }]',
            "guardrail[0].pattern",
            "matches everything",
        ),
        (
            'guardrail = [{ name = "g", pattern = "(" }]',
            "guardrail[0].pattern",
            "not a valid regular expression",
        ),
        (
            'guardrail = [{ name = "g", words = ["a"], action = "transfer" }]',
            "guardrail[0].transfer_to",
            'is needed for action = "transfer"',
        ),
        (
            'guardrail = [{ name = "g", words = ["a"], action = "transfer", transfer_to = "x" }]',
            "guardrail[0].transfer_to",
            'there is no [[route.transfer]] "x"',
        ),
        (
            'response_failure.transfer_to = "x"',
            "response_failure.transfer_to",
            "there is no [[route.transfer]]",
        ),
        ('response_failure.sound = "hum"', "response_failure.sound", ""),
        ('context.strategy = "forget"', "context.strategy", "'delete' or 'summarize'"),
        ("context.max_turns = -1", "context.max_turns", "greater than or equal to 0"),
        ('post_call.prompts = { "A b" = "x" }', "post_call.prompts.A b", "a-z"),
        ('message = [{ role = "user" }]', "message[0]", "either text or file"),
        ('message = [{ text = "a", file = "b" }]', "message[0]", "either text or file"),
        ('message = [{ role = "tool", text = "a" }]', "message[0].role", "'system'"),
        ('message = [{ text = "{nobody}" }]', "message[0].text", "there is no variable {nobody}"),
        ('message = [{ file = "nothing.txt" }]', "message[0].file", "cannot be read"),
        (
            'message = [{ file = "r.toml" }]  # {nobody}',
            "message[0].file",
            "there is no variable {nobody}",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        route_of(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.key.replace('"', "") == f"route[0].{key}"
    assert message in problem.message


def test_messages_at_the_start_are_texts_or_files_with_variables(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text(
        "\nYou speak with {from_name|somebody}.\n", encoding="utf-8"
    )
    messages = (
        'message = [{ file = "rules.txt" }, { role = "user", text = "Hi." },'
        ' { role = "assistant", text = "Hello." }]'
    )
    plan = content_plan(route_of(tmp_path, messages), {"from_name": "Ann"})
    assert plan.messages == (
        ("system", "You speak with Ann."), ("user", "Hi."), ("assistant", "Hello."),
    )  # fmt: skip
    (tmp_path / "rules.txt").write_bytes(b"x" * 16_001)
    with pytest.raises(ConfigError, match="1 to 16000 characters"):
        route_of(tmp_path, messages)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(body='{"allow": true}'), (True, "")),
        (Answer(body='{"allow": false, "reason": "rude"}'), (False, "rude")),
        (Answer(body='{"allow": "yes"}'), (None, "the answer was not understood")),
        (Answer(body="<html>"), (None, "the answer was not understood")),
        (Answer(status=500), (None, "nobody could be asked")),
        (Answer(body='{"allow": false}', seconds=30), (None, "too late")),
    ],
)
def test_somebody_is_asked_over_http(answer: Answer, verdict: http.Verdict) -> None:
    async def asked(url: str) -> http.Verdict:
        client = HttpClient(2)
        timeout = 0.2 if answer.seconds else 20.0
        rule = GuardrailPlan(url=url, headers={"X-Key": "k"}, timeout=timeout, name="g")
        call = ToolCall("key", "agent", "One sentence.", call="c1", route="r")
        try:
            return await http.ask_content(client, rule, call)
        finally:
            await client.close()

    with http_service() as service:
        service.answers = [answer]
        assert asyncio.run(asked(service.url)) == verdict
    if answer.seconds:
        return  # on a busy machine the question may not have come in that time
    (request,) = service.asked
    assert request.headers["x-key"] == "k"
    assert (request.json["who"], request.json["text"]) == ("agent", "One sentence.")


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
