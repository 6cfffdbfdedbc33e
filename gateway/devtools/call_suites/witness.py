# SPDX-License-Identifier: GPL-2.0-or-later
"""What a gateway of ours tells of a suite's call: transcript and record, over its control socket;
and a recogniser for targets that tell nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from gateway.api.client import NoAnswerError, RefusedError, ask, sockets_at
from gateway.audio.g711 import SAMPLE_RATE, Codec
from gateway.devtools.call_suites.suite import Recogniser
from gateway.devtools.call_suites.verdicts import Said
from gateway.devtools.scripted_caller.report import Span
from gateway.devtools.scripted_caller.sound import write_sound

RECORD_SECONDS = 8.0
"""For the record of an ended call to be there: a transfer, a recording may end after the BYE."""

UNKNOWN_SECONDS = 2.0
"""For a call that the gateway has never heard of, as it went elsewhere."""

POLL_SECONDS = 0.1
FOLLOW_SECONDS = 0.5
"""Between two looks at a call in progress."""
RECOGNISER_SECONDS = 120.0
CLOCKS = timedelta(seconds=2)
"""By how much the clocks of caller and target may differ."""


class Witness:
    """Asks the gateway behind a control socket about calls, by their Call-ID or caller.

    Args:
        socket: its control socket; None where the target is no gateway of ours.
        why_not: told where there is no socket.
        keeps_records: the gateway tells of ended calls. Else calls are looked at while they last.
    """

    def __init__(
        self, socket: Path | None, why_not: str = "", *, keeps_records: bool = False
    ) -> None:
        self._socket = socket
        self._keeps_records = keeps_records
        self._seen: dict[str, dict[str, Any]] = {}
        """The last look at the record of each caller's call."""
        self.why_not = why_not
        """Why nothing is told; empty while something may be."""

    async def transcript(self, sip_call_id: str, caller: str) -> list[Said] | None:
        """What was said so far in a call in progress; None where nothing is told."""
        name = await self._name(sip_call_id, caller, None)
        told = None if name is None else await self._ask("transcript", call=name)
        return None if told is None else said_in(told["transcript"])

    async def record(
        self, sip_call_id: str, caller: str, since: datetime
    ) -> tuple[dict[str, Any] | None, str]:
        """The record of an ended call, waited for; or None, and why."""
        if self._socket is None:
            return None, self.why_not
        if not self._keeps_records:
            seen = self._seen.pop(caller, None)
            return seen, "" if seen else self.why_not or "the gateway told nothing of it"
        now, latest = time.monotonic(), None
        until, unknown_until = now + RECORD_SECONDS, now + UNKNOWN_SECONDS
        while time.monotonic() < until:
            name = await self._name(sip_call_id, caller, since)
            if name is None and time.monotonic() >= unknown_until:
                break
            row = None if name is None else await self._ask("record", call=name)
            if row is not None:
                latest = row["record"] or latest
                if row.get("ended_at") and row["record"]:
                    return dict(row["record"]), ""
            if self.why_not:
                break
            await asyncio.sleep(POLL_SECONDS)
        if latest is not None:
            return None, "its record had no end yet"
        return None, self.why_not or "the gateway has no record of it"

    @contextlib.contextmanager
    def following(self, caller: str) -> Iterator[None]:
        """Look at this caller's call meanwhile, where nothing is told of it afterwards."""
        if self._socket is None or self._keeps_records:
            yield
            return
        task = asyncio.create_task(self._follow(caller), name=f"look at the call of {caller}")
        try:
            yield
        finally:
            task.cancel()

    async def _follow(self, caller: str) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            name = await self._name("", caller, None)
            row = None if name is None else await self._ask("record", call=name)
            if row is not None and row["record"]:
                self._seen[caller] = row["record"]

    async def _name(self, sip_call_id: str, caller: str, since: datetime | None) -> str | None:
        """What the target calls this call: a PBX in between gives it another Call-ID."""
        told = await self._ask("calls", sip_call_id=sip_call_id) if sip_call_id else None
        if told is not None and told["calls"]:
            return str(told["calls"][0]["id"])
        fields: dict[str, Any] = {"number": caller}
        if since is not None:
            fields["since"] = (since - CLOCKS).isoformat()
        else:
            fields["live"] = "true"
        told = await self._ask("calls", **fields)
        found = [row for row in (told or {}).get("calls", ()) if row["from_number"] == caller]
        return str(found[0]["id"]) if len(found) == 1 else None

    async def _ask(self, command: str, **fields: Any) -> dict[str, Any] | None:
        if self._socket is None:
            return None

        def asked() -> dict[str, Any] | None:
            assert self._socket is not None
            refused = None
            for one in sockets_at(self._socket):
                try:
                    answer = ask(one, command, **fields)
                except (NoAnswerError, RefusedError) as error:
                    refused = error
                    continue
                self.why_not = ""
                if answer.get("calls") != []:
                    return answer
            if isinstance(refused, NoAnswerError):
                self.why_not = str(refused)
            return None

        return await asyncio.to_thread(asked)


def said_in(transcript: Sequence[Mapping[str, Any]]) -> list[Said]:
    """The words of a record's transcript, those of the agent as far as the caller heard them."""
    said = []
    for one in transcript:
        text = one.get("heard", one.get("text")) or ""
        if text:
            said.append(Said(str(one.get("who", "")), str(text), one.get("at_ms")))
    return said


def recogniser_of(settings: Recogniser) -> tuple[Recognise | None, str]:
    """How sound is turned into words; or None, and why there is no way."""
    if settings.command:
        return Recognise(settings), ""
    if settings.model:
        if importlib.util.find_spec("faster_whisper") is None:
            return None, "recogniser.model needs the package faster-whisper"
        return Recognise(settings), ""
    return None, "no [recogniser] is configured"


class Recognise:
    """Turns G.711 into words, off the event loop."""

    def __init__(self, settings: Recogniser) -> None:
        self._settings = settings

    async def words(self, track: bytes, codec: Codec, span: Span | None = None) -> tuple[str, str]:
        """The words in a stretch of a recording; or why there are none."""
        if span is not None:
            per_ms = SAMPLE_RATE // 1000
            track = track[span.from_ms * per_ms : span.to_ms * per_ms]
        with tempfile.TemporaryDirectory(prefix="gateway-test-") as folder:
            wav = Path(folder, "heard.wav")
            await asyncio.to_thread(write_sound, wav, codec, [track])
            if self._settings.command:
                return await self._by_command(wav)
            return await asyncio.to_thread(_by_whisper, self._settings.model, str(wav))

    async def _by_command(self, wav: Path) -> tuple[str, str]:
        command = [part.replace("{wav}", str(wav)) for part in self._settings.command]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            return "", f"{command[0]}: {error.strerror or error}"
        try:
            async with asyncio.timeout(RECOGNISER_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return "", f"{command[0]} took longer than {RECOGNISER_SECONDS:g} s"
        if process.returncode:
            last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return "", f"{command[0]} failed ({process.returncode}): {last[:200]}"
        return out.decode("utf-8", "replace").strip(), ""


@lru_cache(maxsize=1)
def _whisper(model: str) -> Any:
    package = importlib.import_module("faster_whisper")
    return package.WhisperModel(model, device="cpu", compute_type="int8", local_files_only=True)


def _by_whisper(model: str, wav: str) -> tuple[str, str]:
    try:
        segments, _info = _whisper(model).transcribe(wav)
        return " ".join(one.text.strip() for one in segments), ""
    except Exception as error:  # of a package that we do not know
        return "", f"faster-whisper: {type(error).__name__}: {error}"
