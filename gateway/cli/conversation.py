"""``gateway say``, ``tell``, ``show``, ``respond``, ``ask`` and ``transcript``: into a call's
conversation, and out of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gateway.cli.status import CONFIG, SOCKET, asked, socket_of
from gateway.control.client import ANSWER_SECONDS, NoAnswerError, RefusedError, ask
from gateway.text import printable

FOLLOW_SECONDS = 0.5
ASIDE_SECONDS = 25.0

_RESPOND = click.option("--respond", is_flag=True, help="The model is asked to answer to it.")
_CALL = click.argument("call")


def _asked(config: Path, path: Path | None, command: str, **fields: Any) -> dict[str, Any]:
    seconds = ASIDE_SECONDS if command == "ask" else ANSWER_SECONDS
    return asked(config, path, command, seconds, **fields)


@click.command("say")
@_CALL
@click.argument("text")
@CONFIG
@SOCKET
def say(call: str, text: str, config: Path, path: Path | None) -> None:
    """Let the model say exactly TEXT in CALL, as soon as it says nothing else."""
    _asked(config, path, "say", call=call, text=text)


@click.command("tell")
@_CALL
@click.argument("text")
@click.option("--user", is_flag=True, help="As if the caller had said it; else a system message.")
@_RESPOND
@CONFIG
@SOCKET
def tell(call: str, text: str, user: bool, respond: bool, config: Path, path: Path | None) -> None:
    """Put TEXT into the conversation of CALL."""
    role = "user" if user else "system"
    _asked(config, path, "tell", call=call, text=text, role=role, respond=respond)


@click.command("show")
@_CALL
@click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--text", default="", help="Words beside it.")
@_RESPOND
@CONFIG
@SOCKET
def show(call: str, image: Path, text: str, respond: bool, config: Path, path: Path | None) -> None:
    """Show the model of CALL a PNG or JPEG file."""
    from gateway.tools.images import ImageError, data_uri

    try:
        uri = data_uri(image.read_bytes())
    except (OSError, ImageError) as error:
        click.echo(f"{image}: {error}", err=True)
        sys.exit(1)
    _asked(config, path, "show", call=call, image=uri, text=text, respond=respond)


@click.command("respond")
@_CALL
@click.argument("instructions")
@CONFIG
@SOCKET
def respond(call: str, instructions: str, config: Path, path: Path | None) -> None:
    """Let the model speak in CALL by INSTRUCTIONS for this one response."""
    _asked(config, path, "respond", call=call, text=instructions)


@click.command("ask")
@_CALL
@click.argument("question")
@CONFIG
@SOCKET
def ask_aside(call: str, question: str, config: Path, path: Path | None) -> None:
    """Ask the model about CALL (a summary, a class); the caller hears nothing of it."""
    answer = _asked(config, path, "ask", call=call, text=question)
    click.echo(printable(answer["text"]))


@click.command("transcript")
@_CALL
@click.option("-f", "--follow", is_flag=True, help="Go on until the call is over.")
@click.option("--json", "as_json", is_flag=True, help="Each entry as one JSON object.")
@click.option(
    "--unmasked", is_flag=True, help="With private digits and what records.redact names, in clear."
)
@CONFIG
@SOCKET
def transcript(
    call: str, follow: bool, as_json: bool, unmasked: bool, config: Path, path: Path | None
) -> None:
    """Print what both sides said in CALL so far, and what the caller heard of it.

    Digits are masked as in the record of the call.
    """
    answer = _asked(config, path, "transcript", call=call, unmasked=unmasked)
    shown: list[str] = []
    while True:
        entries = answer["transcript"]
        # Words are added to the latest entries as they come; each is shown when the next is there.
        ready = entries[:-1] if follow else entries
        lines = [json.dumps(one, ensure_ascii=False) if as_json else line_of(one) for one in ready]
        for line in lines[len(shown) :]:
            click.echo(printable(line))
        shown = lines if len(lines) > len(shown) else shown
        if not follow:
            return
        time.sleep(FOLLOW_SECONDS)
        try:
            answer = ask(path or socket_of(config), "transcript", call=call, unmasked=unmasked)
        except (NoAnswerError, RefusedError):
            for one in entries[len(shown) :]:
                click.echo(
                    printable(json.dumps(one, ensure_ascii=False) if as_json else line_of(one))
                )
            return


def line_of(entry: Mapping[str, Any]) -> str:
    """One entry for people."""
    heard = entry.get("heard")
    cut = "" if heard is None else f"  [heard: {heard or 'nothing'}]"
    return f"{entry['at_ms'] / 1000:8.1f}  {entry['who']:<7} {entry['text'] or '(no words)'}{cut}"
