# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools of the services of this folder: see docs/tools.md.

What a real service keeps in its own database is kept in memory here.
"""

from __future__ import annotations

import os
from datetime import date, time
from typing import Annotated, Any, Literal

import httpx
from pydantic import Field

from gateway.tools import Call, ToolError, tool

SLOTS = (time(9), time(10, 30), time(14))
booked: dict[tuple[date, time], str] = {}

PRICES = {"A7K-29": 4.5, "B2M-11": 12.0, "Q8X-40": 30.0}
LETTERS = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            *("Alfa", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel", "India"),
            *("Juliett", "Kilo", "Lima", "Mike", "November", "Oscar", "Papa", "Quebec", "Romeo"),
            *("Sierra", "Tango", "Uniform", "Victor", "Whiskey", "X-ray", "Yankee", "Zulu"),
        ),
        strict=True,
    )
)
"""The spelling alphabet of ICAO and ITU."""


@tool
def free_times(day: date) -> list[str]:
    """The times at which the practice has room on a day.

    Args:
        day: The day.
    """
    if day.weekday() >= 5:
        return []
    return [f"{slot:%H:%M}" for slot in SLOTS if (day, slot) not in booked]


@tool
def book_appointment(call: Call, day: date, at: time, name: str) -> str:
    """Book an appointment, when the caller has agreed to day and time.

    Args:
        day: The day.
        at: One of the free times.
        name: The caller's name, as they have spelled it.
    """
    if day <= date.today():
        raise ToolError("appointments can be made from tomorrow on")
    if f"{at:%H:%M}" not in free_times(day):
        raise ToolError(f"{at:%H:%M} is not free on that day; ask free_times")
    booked[day, at] = name
    call.set_disposition("booked")
    return f"{name} has an appointment on {day:%A, %d %B} at {at:%H:%M}."


@tool
def note_answer(
    call: Call,
    question: Literal["sleep", "pain", "medicine"],
    answer: Annotated[str, Field(max_length=200)],
) -> str:
    """Note the answer to one question, in the caller's own words.

    Args:
        question: Which question.
        answer: What the caller said.
    """
    answers.setdefault(call.id, {})[question] = answer
    missing = [one for one in ("sleep", "pain", "medicine") if one not in answers[call.id]]
    if missing:
        return f"Noted. Ask next about {missing[0]}."
    call.set_disposition("completed")
    return "Noted. That was the last question: thank the caller and end the call."


answers: dict[str, dict[str, str]] = {}


def spelled(code: str) -> str:
    """A code as it is read out on the telephone: "A as in Alfa, 7, dash"."""
    words = {"-": "dash"}
    return ", ".join(
        f"{sign} as in {LETTERS[sign]}" if sign in LETTERS else words.get(sign, sign)
        for sign in code.upper()
    )


@tool
def check_code(code: Annotated[str, Field(pattern="^[A-Za-z0-9-]{3,12}$")]) -> dict[str, Any]:
    """Look an article up, and how its code is read back.

    Args:
        code: The article's code, such as A7K-29.
    """
    price = PRICES.get(code.upper())
    if price is None:
        raise ToolError(f"no article has this code. Read back what you heard: {spelled(code)}")
    return {"code": code.upper(), "euros": price, "read_back": spelled(code)}


@tool
def place_order(call: Call, code: str, pieces: Annotated[int, Field(ge=1, le=100)]) -> str:
    """Order, when the caller has confirmed the code letter by letter.

    Args:
        code: The article's code.
        pieces: How many.
    """
    price = PRICES.get(code.upper())
    if price is None:
        raise ToolError("no article has this code")
    call.set_disposition("ordered")
    return f"Ordered: {pieces} of {code.upper()}, {price * pieces:.2f} euros."


@tool(timeout=30, filler_delay=1.5, filler_text="Let me think about that for a moment.")
async def ask_expert(question: Annotated[str, Field(max_length=1000)]) -> str:
    """Put a hard question to a model that thinks longer; its answer is written, not spoken.

    Args:
        question: The question, with all that is needed to answer it.
    """
    base = os.environ.get("TEXT_MODEL_URL", "https://api.openai.com/v1")
    body = {
        "model": os.environ.get("TEXT_MODEL", "gpt-5"),
        "messages": [
            {"role": "system", "content": "Answer in at most three sentences, to be read aloud."},
            {"role": "user", "content": question},
        ],
    }
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=25, trust_env=False, headers=headers) as client:
        try:
            answer = await client.post(f"{base}/chat/completions", json=body)
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])
        except (httpx.HTTPError, LookupError, ValueError):
            words = "the other model cannot be asked now; say so, and offer to call back"
            raise ToolError(words) from None
