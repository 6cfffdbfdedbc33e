# SPDX-License-Identifier: GPL-2.0-or-later
"""A scripted caller: dials, listens, speaks, presses keys, hangs up. Its scripts, and the report of
its call.

``call`` follows the steps of a script, ``run`` is the telephone, and ``sound`` has clips,
recordings and levels.

The caller listens and records all the time; steps, each with its deadline, say when to speak, press
keys and hang up. As a file (TOML), and with the same names as Python objects::

    [[step]]
    do = "wait_answer"
    within = 10

    [[step]]
    do = "wait_speech"          # the greeting begins
    within = 5

    [[step]]
    do = "wait_silence"         # and is over
    ms = 800

    [[step]]
    do = "say"
    text = "Good morning. Do you have a room?"

    [[step]]
    do = "digits"
    keys = "42#"

    [[step]]
    do = "expect_end"           # the other side says goodbye and hangs up
    within = 20
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from gateway.audio import Codec
from gateway.config.source import (
    ConfigError,
    KeyPath,
    Section,
    TomlSource,
    problems_of,
    read_toml,
    suggestion,
)
from gateway.sip.leg import LegEnd
from gateway.text import path_of

SPEECH_DBFS = -45.0
"""A frame this loud counts as sound. Speech on the telephone is 20 dB above, line noise below."""

MAX_STEPS = 500


def _beside_script(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path_of(str(path)) if folder is None else Path(folder, path_of(str(path)))


Count = Annotated[int, Strict(), Field(ge=1)]
Seconds = Annotated[float, Strict(), Field(gt=0)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Field(min_length=1)]
Level = Annotated[float, Field(ge=-90, le=0)]
AudioFile = Annotated[Path, AfterValidator(_beside_script)]


class Step(Section):
    """One thing to do; ``within`` is its deadline (s) where it has one.

    ``note`` is what a person is told of it.
    """

    needs_media: ClassVar[bool] = True
    """Whether it works only after the answer."""
    note: Text | None = None

    def __str__(self) -> str:
        return str(getattr(self, "do", type(self).__name__))


class WaitAnswer(Step):
    """Until the call is answered (200) and audio flows."""

    needs_media: ClassVar[bool] = False
    do: Literal["wait_answer"] = "wait_answer"
    within: Seconds = 30.0


class WaitSpeech(Step):
    """Until ``ms`` of sound were heard since the step began; short pauses only weigh against it."""

    do: Literal["wait_speech"] = "wait_speech"
    ms: Count = 200
    threshold_dbfs: Level = SPEECH_DBFS
    within: Seconds = 15.0


class WaitSilence(Step):
    """Until it has been quiet for ``ms``; quiet from before the step counts."""

    do: Literal["wait_silence"] = "wait_silence"
    ms: Count = 700
    threshold_dbfs: Level = SPEECH_DBFS
    within: Seconds = 60.0


class Play(Step):
    """Play a file: WAV, or raw G.711 (``.ulaw``, ``.alaw``) byte for byte.

    In the ``background`` the next step begins at once; the next thing to play waits its turn.
    """

    do: Literal["play"] = "play"
    file: AudioFile
    background: Flag = False

    def __str__(self) -> str:
        return f"play {self.file.name}"


class Say(Step):
    """Speak a text with the synthesiser of the emulator."""

    do: Literal["say"] = "say"
    text: Annotated[Text, Field(max_length=4000)]
    voice: Text = "cedar"
    background: Flag = False

    def __str__(self) -> str:
        short = self.text if len(self.text) <= 40 else f"{self.text[:39]}…"
        return f'say "{short}"'


class Interrupt(Step):
    """Speak while the other side speaks: ``after_ms`` of its sound, a text or a file begins."""

    do: Literal["interrupt"] = "interrupt"
    after_ms: Annotated[int, Strict(), Field(ge=0, le=60_000)] = 1000
    text: Annotated[str, Field(max_length=4000)] = ""
    file: AudioFile | None = None
    voice: Text = "cedar"
    threshold_dbfs: Level = SPEECH_DBFS
    within: Seconds = 15.0

    @model_validator(mode="after")
    def _one_sound(self) -> Interrupt:
        if bool(self.text) is (self.file is not None):
            raise ValueError("an interruption has either a text or a file")
        return self

    def __str__(self) -> str:
        return f"interrupt after {self.after_ms} ms"


class Digits(Step):
    """Press keys, one after the other; done when the last one has been sent.

    ``how``: RFC 4733 events, SIP INFO, or tones in the audio (``inband``).
    """

    do: Literal["digits"] = "digits"
    keys: Annotated[str, Field(pattern=r"^[0-9*#A-D]{1,64}$")]
    how: Literal["rfc4733", "info", "inband"] = "rfc4733"

    def __str__(self) -> str:
        return f"digits {self.keys}" + ("" if self.how == "rfc4733" else f" ({self.how})")


class Hold(Step):
    """Put the other side on hold by a re-INVITE (RFC 3264 section 8.4)."""

    do: Literal["hold"] = "hold"


class Resume(Step):
    """Take the other side back from hold; done when audio flows again."""

    do: Literal["resume"] = "resume"
    within: Seconds = 5.0


class ChangeCodec(Step):
    """Offer one codec by a re-INVITE; done when the other side has taken it."""

    do: Literal["codec"] = "codec"
    codec: Codec
    within: Seconds = 5.0

    def __str__(self) -> str:
        return f"codec {self.codec}"


class Noise(Step):
    """White noise under all that the caller sends from now on, at ``dbfs``; "off" ends it."""

    do: Literal["noise"] = "noise"
    dbfs: Level | Literal["off"]

    def __str__(self) -> str:
        return f"noise {self.dbfs}" + ("" if self.dbfs == "off" else " dBFS")


LossPercent = Annotated[int, Strict(), Field(ge=0, le=90)]
JitterMs = Annotated[int, Strict(), Field(ge=0, le=1000)]


class BadLine(Section):
    """Loss and jitter of RTP packets."""

    loss_percent: LossPercent = 0
    """Of the packets, lost in each direction; 1 is refused, as pjmedia cannot do it."""
    jitter_ms: JitterMs = 0
    """How late packets are sent at most, each at random, in their order."""

    @model_validator(mode="after")
    def _not_one(self) -> Self:
        if self.loss_percent == 1:
            raise ValueError("loss_percent is 0, or 2 and more")
        return self


class Line(BadLine, Step):
    """From now on, packets are lost and late as it says; without keys the line is good again."""

    do: Literal["line"] = "line"

    def __str__(self) -> str:
        return f"line with {self.loss_percent} % loss, {self.jitter_ms} ms jitter"


class Wait(Step):
    """Let time pass. The call must not end meanwhile."""

    needs_media: ClassVar[bool] = False
    do: Literal["wait"] = "wait"
    seconds: Annotated[Seconds, Field(le=3600)]

    def __str__(self) -> str:
        return f"wait {self.seconds:g} s"


class Listen(Step):
    """Let time pass, counted from the answer; an end of the call before that is as good."""

    do: Literal["listen"] = "listen"
    seconds: Annotated[Seconds, Field(le=3600)]

    def __str__(self) -> str:
        return f"listen until {self.seconds:g} s after the answer"


class ExpectEnd(Step):
    """The other side ends the call, with SIP status ``code`` where that is given.

    A hang-up has 200, a refusal its own code.
    """

    needs_media: ClassVar[bool] = False
    do: Literal["expect_end"] = "expect_end"
    code: Annotated[int | None, Field(ge=200, le=699)] = None
    within: Seconds = 30.0


class HangUp(Step):
    """End the call: CANCEL before the answer, BYE after it. It also ends after the last step."""

    needs_media: ClassVar[bool] = False
    do: Literal["hang_up"] = "hang_up"


AnyStep = (
    WaitAnswer
    | WaitSpeech
    | WaitSilence
    | Play
    | Say
    | Interrupt
    | Digits
    | Hold
    | Resume
    | ChangeCodec
    | Noise
    | Line
    | Wait
    | Listen
    | ExpectEnd
    | HangUp
)

STEPS: dict[str, type[Step]] = {
    str(kind.model_fields["do"].default): kind for kind in get_args(AnyStep)
}
"""Every kind of step by the name it has in a file."""


class Script(Section):
    """Steps in order, and how long the whole call may last (s)."""

    steps: Annotated[
        tuple[Annotated[AnyStep, Field(discriminator="do")], ...], Field(max_length=MAX_STEPS)
    ]
    max_seconds: Annotated[Seconds, Field(le=3600)] = 300.0

    def misplaced(self) -> list[tuple[int, str]]:
        """Return index and reason of each step that cannot work at its place."""
        found: list[tuple[int, str]] = []
        answered = ended = False
        for index, step in enumerate(self.steps):
            if ended:
                found.append((index, "comes after the end of the call"))
            elif step.needs_media and not answered:
                found.append((index, f'{step.do} needs a step do = "wait_answer" before it'))
            answered = answered or isinstance(step, WaitAnswer)
            ended = ended or isinstance(step, ExpectEnd | HangUp)
        return found


def simple_script(
    play: Path | None = None, digits: str = "", seconds: float = 10.0, answer_within: float = 30.0
) -> Script:
    """The script of ``gateway test-call --play --dtmf --seconds``."""
    steps: list[AnyStep] = [WaitAnswer(within=answer_within)]
    if play is not None:
        steps.append(Play(file=play))
    if digits:
        steps.append(Digits(keys=digits))
    steps.append(Listen(seconds=seconds))
    return Script(steps=tuple(steps), max_seconds=3600.0)


def load_script(file: Path) -> Script:
    """Read a script file. Raises ConfigError with every mistake: file, line, key."""
    source = read_toml(file)
    for key in source.data:
        if key not in ("step", "max_seconds"):
            source.report((key,), "unknown key" + suggestion(key, ["step", "max_seconds"]))
    if not source.data.get("step"):
        source.report(("step",), "a script needs steps: write [[step]] and do = ...")
    script = script_of(source, source.data, ())
    if script is None or source.problems:
        raise ConfigError(source.problems)
    return script


def script_of(source: TomlSource, table: Mapping[str, Any], base: KeyPath) -> Script | None:
    """Return the script in ``step`` and ``max_seconds`` of the table at ``base``.

    Mistakes are reported to ``source``, and None is returned where there are some.
    """
    before = len(source.problems)
    steps = _steps_of(source, table.get("step") or [], (*base, "step"))
    if len(source.problems) > before:
        return None
    given = {"max_seconds": table["max_seconds"]} if "max_seconds" in table else {}
    try:
        script = Script.model_validate({"steps": steps, **given})
    except ValidationError as error:
        source.problems.extend(problems_of(error, Script, source, base))
        return None
    for index, why in script.misplaced():
        source.report((*base, "step", index, "do"), why)
    return script


def _steps_of(source: TomlSource, tables: Any, base: KeyPath) -> list[Step]:
    if not isinstance(tables, list):
        source.report(base, "must be an array of tables: write [[step]] and do = ...")
        return []
    steps: list[Step] = []
    for index, table in enumerate(tables[:MAX_STEPS]):
        path = (*base, index)
        if not isinstance(table, dict):
            source.report(path, "must be a table: write [[step]]")
            continue
        kind = STEPS.get(str(table.get("do")))
        if kind is None:
            said = table.get("do")
            message = "missing" if said is None else f"unknown step {said!r}"
            source.report((*path, "do"), message + suggestion(str(said or ""), STEPS))
            continue
        try:
            context = {"folder": source.file.absolute().parent}
            steps.append(kind.model_validate(table, context=context))
        except ValidationError as error:
            source.problems.extend(problems_of(error, kind, source, path))
    if len(tables) > MAX_STEPS:
        source.report(base, f"more than {MAX_STEPS} steps")
    return steps


@dataclass(frozen=True, slots=True)
class Dialling:
    """How a call is placed; REFERs whose target ``follow`` matches are followed."""

    caller_id: str = ""
    trunk: str = ""
    """Of the telephone, with credentials for whom is called."""
    headers: Mapping[str, str] = field(default_factory=dict)
    follow: re.Pattern[str] | None = None
    line: BadLine = field(default_factory=BadLine)
    """How it is from the beginning."""


class Outcome(StrEnum):
    """Outcome of a scripted call."""

    COMPLETED = "completed"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    STEP_MISSED = "step_missed"
    LOST = "lost"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def exit_code(self) -> int:
        """The exit status of ``gateway test-call``; 2 is wrong usage."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Outcome.COMPLETED: 0,
    Outcome.REFUSED: 3,
    Outcome.NO_ANSWER: 4,
    Outcome.STEP_MISSED: 5,
    Outcome.LOST: 6,
    Outcome.FAILED: 7,
    Outcome.INTERRUPTED: 130,
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class StepReport(_Part):
    """One step: 1-based number, what it was, when it began (ms since INVITE), how it ended."""

    number: int
    step: str
    began_ms: float
    took_ms: float
    done: bool


class Span(_Part):
    """A stretch of the recording, ms from its first sample."""

    from_ms: int
    to_ms: int
    what: str = ""


class EndReport(_Part):
    """The end as SIP saw it; ``by`` is ``caller`` (us), ``callee`` or ``network``."""

    by: str
    code: int
    reason: str
    method: str = ""
    reason_header: str = ""

    @classmethod
    def of(cls, end: LegEnd, answered: bool) -> EndReport:
        by = "caller" if end.local else "callee"
        if not end.local and answered and end.method != "BYE":
            by = "network"
        return cls(
            by=by,
            code=end.code,
            reason=end.reason,
            method=end.method,
            reason_header=end.reason_header,
        )


class CallReport(_Part):
    """One scripted call. Moments are ms since the INVITE, None when it did not happen."""

    uri: str
    outcome: Outcome
    message: str
    """One sentence: what happened."""
    exit_code: int
    started_at: datetime
    codec: str | None = None
    ringing_ms: float | None = None
    answered_ms: float | None = None
    media_ms: float | None = None
    """The first sample of the recordings."""
    ended_ms: float | None = None
    steps: list[StepReport] = Field(default_factory=list)
    played: list[Span] = Field(default_factory=list)
    heard: list[Span] = Field(default_factory=list)
    """Where sound was heard, pauses shorter than 300 ms not counted as such."""
    spoken: list[Span] = Field(default_factory=list)
    """The loud part of what was played, without the silence around it."""
    interruptions: list[Span] = Field(default_factory=list)
    """The loud part of each sound of a step ``interrupt``."""
    held: list[Span] = Field(default_factory=list)
    """While we had the other side on hold."""
    refers: list[str] = Field(default_factory=list)
    """Targets of the REFERs that came."""
    sip_call_id: str = ""
    digits_sent: str = ""
    digits_received: str = ""
    recorded_ms: int = 0
    lost_ticks: int = 0
    """20 ms frames that are in no recording; always 0 but on a machine that stood still."""
    rtp_received: int = 0
    rtp_lost: int = 0
    rtp_sent: int = 0
    end: EndReport | None = None


class RunReport(_Part):
    """Several calls of one run (``--repeat``)."""

    calls: list[CallReport]
    completed: int
    exit_code: int
