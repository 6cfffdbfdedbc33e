# SPDX-License-Identifier: GPL-2.0-or-later
"""Digits that were collected as private, in every form in which they come back."""

from __future__ import annotations

import json

import pytest

from gateway.call.call_record import CallRecord
from gateway.text import PrivateDigits, redaction


def private(*digits: str) -> PrivateDigits:
    made = PrivateDigits()
    for one in digits:
        made.add(one)
    return made


@pytest.mark.parametrize(
    "said",
    [
        "4242",
        "42 42",
        "4-2-4-2",
        "4, 2, 4, 2",
        "four two four two",
        "Four, two. Four, two",
        "four 2 four 2",
        "vier zwei vier zwo",
        "quatre deux quatre deux",
        '{"code":"4242"}',
        '{"code": 4242}',
    ],
)
def test_forms_in_which_digits_come_back(said: str) -> None:
    masked = private("4242").masked(f"I have {said}, right?")
    assert "****" in masked
    assert not set("42") & set(masked)
    assert not [word for word in ("four", "vier", "quatre") if word in masked.lower()]


@pytest.mark.parametrize(
    "said",
    [
        "four... two... four... two",
        "four … two … four … two",
        "4 and then 2, then 4 and 2",
        "vier, dann zwei, und vier, und zwei",
        "the 4, a 2, the 4, a 2",
        "forty-two forty-two",
        "forty two, forty two",
        "42 and forty-two",
        "4, two, and 42",
        "zweiundvierzig zweiundvierzig",
        "quarante-deux quarante-deux",
        "\uff14\uff12\uff14\uff12",
        "\uff14\uff12-42",
        "\uff14 \uff12 \uff14 \uff12",
    ],
)
def test_digits_in_pairs_with_pauses_and_words_between(said: str) -> None:
    masked = private("4242").masked(f"I have {said}, right?")
    assert masked in ("I have ****, right?", "I have the ****, right?")


@pytest.mark.parametrize(
    ("digits", "said"),
    [
        ("1100", "eleven hundred is wrong, one one zero zero"),
        ("2017", "twenty seventeen"),
        ("300", "thirty zero"),
        ("1212", "zwölf zwölf"),
        ("4455", "double four double five"),
        ("4455", "doppel vier, double 5"),
    ],
)
def test_numbers_in_words_and_doubles(digits: str, said: str) -> None:
    assert private(digits).masked(said).endswith("****")


@pytest.mark.parametrize(
    "word", ["S\u0130X", "s\u0131x", "\u017fix", "quatre-vingt", "QUATRE-VINGTS"]
)
def test_letters_of_unusual_case_break_nothing(word: str) -> None:
    assert private("4242").masked(f"{word} 4 2 4 2").endswith("****")


def test_what_is_nobodys_digits_stays() -> None:
    value = {"item_id": "item_4242", "started_at": "4242", "text": ["room 424", "forty", 4242]}
    assert private("4242").masked(value) == value
    assert private().masked("4242") == "4242"


@pytest.mark.parametrize(
    ("digits", "text", "masked"),
    [
        ("42", "42, four two, vier zwei", "****, ****, ****"),
        ("42", "room 142, 42.50 and 14:42", "room 142, 42.50 and 14:42"),
        ("1", "You pressed 1. One moment", "You pressed ****. One moment"),
        ("1", "+49 301, 1.5, 11", "+49 301, 1.5, 11"),
    ],
)
def test_one_or_two_digits_are_masked_where_they_stand_alone(
    digits: str, text: str, masked: str
) -> None:
    assert private(digits).masked(text) == masked


def test_many_digits_and_long_texts_take_no_time() -> None:
    made = private("4" * 20, "0123456789")
    assert made.masked("4 " * 200_000 + "x") != ""


def test_pieces_of_words_have_only_their_length() -> None:
    event = {"type": "response.output_audio_transcript.delta", "delta": " four"}
    assert private("4242").masked_event(event)["delta"] == {"chars": 5}
    assert private().masked_event(event) == event


def test_a_record_masks_all_that_is_in_it() -> None:
    record = CallRecord("c4242")
    record.mark(1.0, "agent_transcript", text="four two four two")
    record.metadata = {"pin": "42-42"}
    record.private.add("4242#")
    text = json.dumps(record.as_json())
    assert "c4242" in text
    assert "four" not in text
    assert "42-42" not in text
    assert "42-42" not in json.dumps(record.summary())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("sip:+49301234567@example.org:5060", "sip:+********567@example.org:5060"),
        ("tel:+49-30-1234567", "tel:+**-**-****567"),
        ("call +49 30 1234567 now", "call +** ** ****567 now"),
        ("no route takes '0301234567'", "no route takes '*******567'"),
        ("sip:alice@127.0.0.1:54110", "sip:alice@127.0.0.1:54110"),
        ("2026-11-28T12:00:00.123456+00:00", "2026-11-28T12:00:00.123456+00:00"),
        ("a room for 120 EUR", "a room for 120 EUR"),
    ],
)
def test_numbers_but_for_their_last_digits(text: str, masked: str) -> None:
    assert PrivateDigits(["numbers"]).masked(text) == masked


def test_what_is_in_an_event_a_session_or_a_call_is_masked() -> None:
    """Those that are texts are names, and stay."""
    for key in ("event", "session", "call", "source", "response_id"):
        told = {"event": "call.invite", key: {"name": "n", "transcript": "I am 493012345678"}}
        found = PrivateDigits(["numbers"]).masked(told)[key]
        assert found == {"name": "n", "transcript": "I am *********678"}
    assert PrivateDigits(["numbers"]).masked({"call": "493012345678"}) == {"call": "493012345678"}


def test_keys() -> None:
    made = PrivateDigits(["dtmf"])
    made.pressed("4711")
    value = {"digit": "4", "digits": "47#", "text": 'pressed 4711, {"digits": "12"}', "n": 4}
    assert made.masked(value) == {
        "digit": "*",
        "digits": "***",
        "text": 'pressed ****, {"digits": "**"}',
        "n": 4,
    }
    assert PrivateDigits().masked(value) == value


@pytest.mark.parametrize(
    ("kind", "text", "masked"),
    [
        ("cards", "it is 4111 1111 1111 1111, thanks", "it is ****, thanks"),
        ("cards", "card 5500-0055-5555-5559", "card ****"),
        ("cards", "order 4111 1111 1111 1112", "order 4111 1111 1111 1112"),
        ("ibans", "to DE89 3704 0044 0532 0130 00.", "to ****."),
        ("ibans", "DE89 3704 0044 0532 0130 00 please", "**** please"),
        ("cards", "4111 1111 1111 1111 12 28", "**** 12 28"),
        ("ibans", "GB82WEST12345698765432", "****"),
        ("ibans", "DE89370400440532013001", "DE89370400440532013001"),
        ("emails", "write to ann.b@mail.example.org", "write to ****"),
        ("emails", "sip:ann@pbx.example and @home", "sip:ann@pbx.example and @home"),
    ],
)
def test_kinds_that_have_a_form(kind: str, text: str, masked: str) -> None:
    assert PrivateDigits([kind]).masked(text) == masked


def test_words_by_rule() -> None:
    made = PrivateDigits(["numbers"])
    made.redact((), [r"(?i)customer number [\pL\d-]+", "Müller"])
    told = {"text": "Frau Müller, Customer Number AB-12", "call_id": "Müller", "n": "+49301234567"}
    assert made.masked(told) == {
        "text": "Frau ****, ****",
        "call_id": "Müller",
        "n": "+49301234567",
    }
    assert made.masked("\ud800 Müller") == "\ufffd ****"
    delta = made.masked_event({"type": "d", "delta": "Mül"})
    assert delta["delta"] == {"chars": 3}, "a part of a word cannot be found"


@pytest.mark.parametrize("pattern", ["(", "(?=a)", "a*", "x" * 3 + "|"])
def test_a_rule_that_cannot_be(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"RE2|matches everything"):
        redaction(pattern)


def test_no_text_slows_a_rule_down() -> None:
    """Python's own would take longer than the universe has."""
    made = PrivateDigits(["cards", "ibans", "emails"])
    made.redact(["cards", "ibans", "emails"], [r"(x+x+)+y", r"(\w*)*\d(\w*)*$"])
    for text in ("x" * 16_000, "a." * 8_000 + "@", "@a" * 8_000):
        assert made.masked(text) == text
    for text in ("1" * 16_000, "a1" * 8_000):
        assert made.masked(text) == "****"
