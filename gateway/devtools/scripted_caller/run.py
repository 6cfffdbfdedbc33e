# SPDX-License-Identifier: GPL-2.0-or-later
"""From a script to reports and recordings: what the command and the tests call.

One process has one pjsip endpoint, once: a test that needs another runs this in a subprocess.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.audio.g711 import Codec
from gateway.devtools.scripted_caller.phone import nobody_listens
from gateway.devtools.scripted_caller.script import (
    CallReport,
    Outcome,
    Play,
    RunReport,
    Say,
    Script,
)
from gateway.devtools.scripted_caller.sound import Clip, read_clip, spoken_clip, write_sound

if TYPE_CHECKING:
    from gateway.devtools.scripted_caller.call import ScriptedCall
    from gateway.devtools.scripted_caller.phone import Phone

Progress = Callable[[int, str], None]
"""Told the number of a call (from 1) and what happens to it."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Everything about calls that is not their script.

    ``codecs`` are offered in this order. ``local`` is host and port to call from. With ``repeat``
    above 1 recordings get the call's number before their ending.
    """

    codecs: tuple[Codec, ...] = (Codec.PCMU, Codec.PCMA)
    local: tuple[str, int] | None = None
    user: str = "caller"
    record: Path | None = None
    """What is heard."""
    record_both: Path | None = None
    """Stereo: the caller on the left, what is heard on the right."""
    repeat: int = 1
    parallel: int = 1
    pjsip_log_level: int = 0


@dataclass(slots=True)
class _Run:
    uri: str
    script: Script
    options: CallOptions
    clips: dict[int, Clip]
    on_progress: Progress
    next: int = 1
    reports: dict[int, CallReport] = field(default_factory=dict)


def place_call(
    uri: str,
    script: Script,
    options: CallOptions | None = None,
    on_progress: Progress = lambda _number, _text: None,
) -> CallReport:
    """Place one call and follow ``script``; returns when the call has ended.

    Raises ValueError for an address that is none, SoundError for a sound that cannot be played or
    written, PhoneError when the local address cannot be had, or nothing listens at the other.
    """
    return place_calls(uri, script, options or CallOptions(), on_progress).calls[0]


def place_calls(uri: str, script: Script, options: CallOptions, on_progress: Progress) -> RunReport:
    """Place ``options.repeat`` calls, ``options.parallel`` at a time. Raises as place_call.

    SIGINT and SIGTERM hang up every call; those not yet begun are left out.
    """
    return asyncio.run(_place(uri, script, options, on_progress))


async def _place(
    uri: str, script: Script, options: CallOptions, on_progress: Progress
) -> RunReport:
    from gateway.devtools.scripted_caller.phone import Phone, PhoneError, PhoneSettings, host_of

    settings = PhoneSettings(
        local=options.local, user=options.user, pjsip_log_level=options.pjsip_log_level
    )
    phone = Phone(settings, host_of(uri))
    if nowhere := await asyncio.to_thread(nobody_listens, uri):
        raise PhoneError(f"nothing listens on udp:{nowhere}")
    clips = await asyncio.to_thread(_prepare, script)
    run = _Run(uri, script, options, clips, on_progress)
    async with phone:
        if options.parallel > phone.capacity:
            on_progress(0, f"this pjsua2 carries {phone.capacity} calls at a time, no more")
        workers = min(options.parallel, options.repeat, phone.capacity)
        with _signals(phone.interrupt):
            await asyncio.gather(*(_work(run, phone) for _ in range(workers)))
    calls = [run.reports[number] for number in sorted(run.reports)]
    return RunReport(
        calls=calls,
        completed=sum(call.outcome is Outcome.COMPLETED for call in calls),
        exit_code=next((call.exit_code for call in calls if call.exit_code), 0),
    )


async def _work(run: _Run, phone: Phone) -> None:
    while run.next <= run.options.repeat and not (phone.interrupted and run.reports):
        number = run.next
        run.next += 1
        call = await phone.call(
            run.uri,
            run.script,
            run.clips,
            list(run.options.codecs),
            lambda text, number=number: run.on_progress(number, text),  # type: ignore[misc]
        )
        assert call.report is not None
        run.reports[number] = call.report
        _write(call, run.options, number)


def _prepare(script: Script) -> dict[int, Clip]:
    """Every sound of the script by its step's number, so that no call waits for one."""
    clips: dict[int, Clip] = {}
    for number, step in enumerate(script.steps, start=1):
        if isinstance(step, Play):
            clips[number] = read_clip(step.file)
        elif isinstance(step, Say):
            clips[number] = spoken_clip(step.text, step.voice)
    return clips


def _write(call: ScriptedCall, options: CallOptions, number: int) -> None:
    tape = call.tape
    said, heard = bytes(tape.said_track), bytes(tape.heard_track)
    if options.record is not None:
        write_sound(_numbered(options.record, options, number), tape.codec, [heard])
    if options.record_both is not None:
        write_sound(_numbered(options.record_both, options, number), tape.codec, [said, heard])


def _numbered(file: Path, options: CallOptions, number: int) -> Path:
    return file if options.repeat == 1 else file.with_stem(f"{file.stem}-{number}")


@contextlib.contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may take signals; elsewhere whoever started us ends us.
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, interrupt)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
