# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan of one call: the settings of its route as values, made before the call begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.audio.codecs import Codec
from gateway.call.tools.commands import (
    CollectPlan,
    DispositionPlan,
    HoldPlan,
    LanguagePlan,
    RecordingPlan,
    SendDtmfPlan,
    TransferPlan,
)

RESPONSE_MS = "{response_ms}"


@dataclass(frozen=True, slots=True)
class DtmfPlan:
    """DTMF input: ``[route.dtmf]``. ``text`` makes the message of the digits; :data:`RESPONSE_MS`
    in it is how long the caller waited for the last response, ms."""

    enabled: bool = True
    inband: bool = False
    """Detect DTMF tones in the audio, too."""
    inter_digit_timeout: float = 3.0
    finish_on_key: str = "#"
    max_digits: int = 32
    interrupt: bool = True
    text: Callable[[str], str] = "The caller pressed {} on the telephone keypad.".format


@dataclass(frozen=True, slots=True)
class DisclosurePlan:
    """What is said at the start of the call: that the caller speaks with an AI."""

    words: str
    before: bool = True
    """As a response of its own before the greeting; else the greeting begins with it."""
    interruptible: bool = False
    exact: bool = False
    """Of a session that says words in its own way, it is played as audio."""


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """One tool function, as far as the call needs to know it."""

    check: Callable[[str], str] = lambda _arguments: ""
    """Returns what is wrong with arguments (JSON text), for the model; empty: nothing."""
    timeout: float = 30.0
    """Without a result within this (s) the model gets an error, and the result is dropped."""
    filler_delay: float = 0.0
    """Seconds until the caller gets ``filler_text`` or ``filler_sound``; 0: never."""
    filler_text: str = ""
    filler_sound: str = ""
    approval: bool = False
    """It runs only where a rule approves it."""


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """A rule about the approval of tool calls: :class:`gateway.dialplan.tool_sections.Approval`."""

    tool: str
    """Name of a tool, with * and ? as in file names."""
    policy: str
    """allow, deny, ask_caller or ask_http."""
    when: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Patterns that the named arguments all have to match; a value that is no text as JSON."""
    timeout: float = 20.0
    prompt: Callable[[str, Mapping[str, Any]], str] = lambda tool, _arguments: tool
    """Makes the question to the caller, from a tool and its arguments."""


@dataclass(frozen=True, slots=True)
class OutboundPlan:
    """Settings of a call that the gateway places."""

    ring_timeout: float = 45.0
    early_media: bool = False
    """Whether the session hears the audio before the answer."""


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What is done near the limit of a budget, and at it: ``[route.budget]``."""

    warning_message: str = "The time for this call is nearly used up. Bring it to an end."
    """System message for the model at the warning threshold."""
    warning_response: bool = False
    """Whether a response to it is requested at once."""
    goodbye: str = "The time for this call is used up. Goodbye."
    """Last words to the caller."""
    transfer_to: str = ""
    """Name of the destination to transfer to instead."""


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """When an inbound call is answered: ``[route.answer]``."""

    mode: str = "when_ready"
    """when_ready, early_media or immediate."""
    sound: str = ""
    """Sound for the caller until the model is ready."""
    play_to_end_seconds: float = 0.0
    """The shortest time (s) that the sound is played, even if the model is ready before."""


@dataclass(frozen=True, slots=True)
class InterruptionPlan:
    """Barge-in: see :class:`gateway.dialplan.route_sections.Interruptions`."""

    mode: str = "immediate"
    """immediate, adaptive or disabled."""
    min_speech_ms: int = 250
    """Shorter speech is a false interruption."""
    force_interrupt_ms: int = 1500
    """Speech of this length is an interruption, whatever its words."""
    transcript_timeout: float = 1.5
    """Wait (s) for the transcript of a turn; without it the turn is an interruption."""
    backchannel_phrases: frozenset[str] = frozenset()
    """Phrases that are no interruption, as ``gateway.text.words_of`` splits them."""
    uninterruptible_greeting: bool = False
    uninterruptible_patterns: tuple[re.Pattern[str], ...] = ()
    """A response with words that match one of these is not interrupted."""
    by_gateway: bool = False
    """The gateway interrupts and requests responses; the server does neither by itself."""
    transcribed: bool = False
    """The session transcribes the caller."""
    padding_ms: int = 0
    """Silence that the server counts into speech before and after it."""


@dataclass(frozen=True, slots=True)
class UserIdlePlan:
    """User-idle timeout: ``[route.idle]``."""

    timeout: float = 0.0
    """Seconds without speech until the prompt; 0: never."""
    prompt: str = "Are you still there?"
    max_prompts: int = 2
    goodbye: str = "I cannot hear you. Goodbye."
    transfer_to: str = ""


@dataclass(frozen=True, slots=True)
class SilencePlan:
    """A caller who waits and hears nothing: :class:`gateway.dialplan.route_sections.Silence`."""

    timeout: float = 0.0
    """Longest wait for audio of a response (s); 0: no limit."""
    filler_sound: str = ""
    filler_delay: float = 2.0


@dataclass(frozen=True, slots=True)
class MachineDetectionPlan:
    """Machine detection: ``[route.machine_detection]``."""

    actions: Mapping[str, str] = field(default_factory=dict)
    """off, log, leave_message, hangup or transfer, for music, voicemail and bot."""
    messages: Mapping[str, str] = field(default_factory=dict)
    """Last words to each kind."""
    music_threshold: float = 20.0
    greeting_threshold: float = 8.0
    voicemail_patterns: tuple[re.Pattern[str], ...] = ()
    bot_equal_turns: int = 12
    """Turns of equal length that tell a bot."""
    bot_repeats: int = 3
    """Repetitions of the same words that tell a bot."""
    transfer_to: str = ""
    beep_timeout: float = 0.0
    """Wait (s) for the beep after a greeting."""

    @property
    def listens(self) -> bool:
        """Whether the caller's sounds are analysed, not only words: for music or voicemail."""
        return any(self.actions.get(kind, "off") != "off" for kind in ("music", "voicemail"))


@dataclass(frozen=True, slots=True)
class LinePlan:
    """Limits of the line's quality: :class:`gateway.dialplan.route_sections.Line`; 0: no limit."""

    enabled: bool = False
    max_loss: float = 5.0
    """Packets lost or too late, %."""
    max_jitter: float = 60.0
    """ms."""
    min_mos: float = 3.0
    min_level: float = 0.0
    """Of the caller's speech, dBFS; 0: not measured."""
    after: float = 5.0
    """Seconds beyond a limit until the model is told."""
    recovered_after: float = 10.0
    """Seconds within all limits until it is told that the line is good again."""
    hint: str = "Keep to short sentences, speak slowly, and repeat numbers and names."
    recovered: str = "The telephone line is good again. Speak as usual."
    """Told when the line is good again; "" tells nothing."""
    max_hints: int = 1
    """How often the model is told of a bad line in one call."""


@dataclass(frozen=True, slots=True)
class HoldKey:
    """DTMF digits that are sent when an announcement matches ``words``."""

    words: re.Pattern[str]
    digits: str


@dataclass(frozen=True, slots=True)
class HoldWaitPlan:
    """Waiting in a queue: :class:`gateway.dialplan.route_sections.HoldWait`."""

    enabled: bool = False
    music_threshold: float = 4.0
    """Seconds of music in a row that begin the wait."""
    announcements: tuple[re.Pattern[str], ...] = ()
    """Words that nobody who can be talked to says."""
    max_wait: float = 1800.0
    transfer_to: str = ""
    """Destination after ``max_wait``; "" hangs up."""
    keys: tuple[HoldKey, ...] = ()
    transcribed: bool = False
    """The session transcribes the other side."""
    quiet: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` that has the server request no responses; empty: it requests none."""
    normal: Mapping[str, Any] = field(default_factory=dict)
    """The one that takes it back."""


@dataclass(frozen=True, slots=True)
class FallbackStep:
    """One step after the loss of a session (``[[route.fallback]]``):
    :class:`gateway.dialplan.route_sections.Fallback`."""

    action: str
    """reconnect, server, announcement, transfer, busy, redirect or hangup."""
    timeout: float = 0.0
    """How long it is tried, or lasts (s)."""
    sound: str = ""
    """Sound for the caller meanwhile, in an answered call."""
    server: int = 0
    """The server, as :class:`gateway.call.outputs.OpenSession` counts them."""
    transfer_to: str = ""
    """Name of the destination (transfer), or a SIP URI (redirect)."""


@dataclass(frozen=True, slots=True)
class GuardrailPlan:
    """A guardrail: ``[[route.guardrail]]``."""

    speaker: str = "agent"
    """agent, caller or both."""
    pattern: re.Pattern[str] | None = None
    """Searched in the words; None where only ``url`` decides."""
    url: str = ""
    """Service that is asked about the words (POST); empty: none."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 1.0
    on_timeout: str = "allow"
    """allow or deny, without an answer in time or one that can be parsed."""
    action: str = "replace"
    """replace, end or transfer."""
    replacement: str = ""
    transfer_to: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ResponseFailurePlan:
    """What is done about failed responses: ``[route.response_failure]``."""

    message: str = "Sorry, something went wrong. Could you say that again?"
    retries: int = 1
    """Retries of a failed response before the message."""
    content_filter_message: str = "Sorry, I cannot talk about that."
    """Said in place of a response that the server's content filter stopped."""
    continue_incomplete: bool = False
    """A response that ended at max_output_tokens is continued."""
    sound: str = "chime"
    """Played where the message fails, too."""
    sound_duration: float = 2.0
    max_failures: int = 3
    """Failures in a row that end the call."""
    max_tool_rounds: int = 10
    """Responses in a row that only call tools, with nothing from the caller in between."""
    goodbye: str = "I am sorry, this does not work at the moment. Goodbye."
    transfer_to: str = ""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Context trimming: how many turns of a long conversation the session keeps
    (``[route.context]``)."""

    max_turns: int = 0
    """Turns of the caller; 0: all."""
    strategy: str = "delete"
    """delete or summarize."""
    instructions: str = ""
    """For the summary."""
    timeout: float = 15.0
    """Without a summary within this (s) the turns are deleted."""


@dataclass(frozen=True, slots=True)
class PostCallPlan:
    """Post-call analysis: ``[route.post_call]``."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """Instructions by name."""
    timeout: float = 8.0


@dataclass(frozen=True, slots=True)
class EscapePlan:
    """How the caller reaches a human without the model: ``[route.escape]``."""

    key: str = ""
    """Key that asks for one; empty: none does."""
    phrases: tuple[tuple[str, ...], ...] = ()
    """Words of the caller that ask for one, as ``gateway.text.words_of`` splits them."""
    to: tuple[str, ...] = ()
    """Names of destinations, in the order in which they are tried."""
    end_phrases: tuple[tuple[str, ...], ...] = ()
    """Words of the caller that end a call which is only transcribed."""


@dataclass(frozen=True, slots=True)
class ContentPlan:
    """Settings about the content of the conversation."""

    guardrails: tuple[GuardrailPlan, ...] = ()
    response_failure: ResponseFailurePlan = field(default_factory=ResponseFailurePlan)
    context: ContextPlan = field(default_factory=ContextPlan)
    post_call: PostCallPlan = field(default_factory=PostCallPlan)
    messages: tuple[tuple[str, str], ...] = ()
    """Role and text of the items that each session begins with."""


@dataclass(frozen=True, slots=True)
class ToolsPlan:
    """Tools of the model: the gateway's own, functions, and approvals of their use."""

    transfer: TransferPlan = field(default_factory=TransferPlan)
    send_dtmf: SendDtmfPlan = field(default_factory=SendDtmfPlan)
    hold: HoldPlan = field(default_factory=HoldPlan)
    language: LanguagePlan = field(default_factory=LanguagePlan)
    collect_digits: CollectPlan = field(default_factory=CollectPlan)
    disposition: DispositionPlan = field(default_factory=DispositionPlan)
    functions: Mapping[str, FunctionPlan] = field(default_factory=dict)
    delegate: str = ""  # The function that does what a Live session hands over to us.
    approvals: tuple[ApprovalRule, ...] = ()
    """Asked in order; the first that fits decides. None fits: allowed, unless it needs approval."""
    application: bool = False
    """An application sees the session, and answers calls of functions that are not here."""


@dataclass(frozen=True, slots=True)
class LimitsPlan:
    """Longest times of a call (s)."""

    max_call_duration: float = 3600.0
    rtp_timeout: float = 30.0
    """Without RTP the call ends; 0: never."""
    goodbye_timeout: float = 10.0
    """From the model's hang-up request to the end of its goodbye."""
    say_seconds: float = 10.0
    """Wait for queued speech to play out before an action starts."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What the realtime server does by itself, and what is done when it fails."""

    interrupts: bool = True
    """Speech of the caller cancels the running response (``interrupt_response``)."""
    responds: bool = True
    """It asks for a response when a turn of the caller ends (``create_response``)."""
    truncate_margin_ms: int = 0
    """Taken off every ``audio_end_ms``, for a server that counts an item shorter than it sent."""
    handover_before_expiry: float = 60.0
    """Seconds before a session expires at which a standby session is opened; 0: never."""
    known_outage: str = ""
    """Why it is known to be down before the call begins; empty: it is not."""
    retry_after: int = 5
    """Seconds, in the Retry-After of a 503."""
    fallback: tuple[FallbackStep, ...] = ()
    """Fallback steps in their order; without any the call ends at once."""


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Settings of one call; seconds and names as in the dialplan."""

    route: str
    codec: Codec
    """Codec of the session, both ways: the one expected on the leg."""
    greeting: Mapping[str, Any] | None = None
    """The ``response`` of the first ``response.create``; None when the caller speaks first."""
    greeting_words: str = ""
    greeting_exact: bool = False
    """As :attr:`DisclosurePlan.exact`."""
    greeting_clip: bytes = field(default=b"", repr=False)
    """The greeting as words to be said, and as :class:`gateway.realtime.events.PlayClip`."""
    disclosure: DisclosurePlan | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the route, for the record."""
    limits: LimitsPlan = field(default_factory=LimitsPlan)
    server: ServerPlan = field(default_factory=ServerPlan)
    tools: ToolsPlan = field(default_factory=ToolsPlan)
    dtmf: DtmfPlan = field(default_factory=DtmfPlan)
    answer: AnswerPlan = field(default_factory=AnswerPlan)
    silence_on_hold: bool = True
    """Whether the session hears silence while the caller has us on hold, or nothing at all."""
    trusted: bool = True
    """The model may be asked before the ACK: the caller is known to be there, or a trunk's."""
    outbound: OutboundPlan | None = None
    """None for an inbound call."""
    budget: BudgetPlan = field(default_factory=BudgetPlan)
    interruptions: InterruptionPlan = field(default_factory=InterruptionPlan)
    idle: UserIdlePlan = field(default_factory=UserIdlePlan)
    silence: SilencePlan = field(default_factory=SilencePlan)
    machine_detection: MachineDetectionPlan = field(default_factory=MachineDetectionPlan)
    line: LinePlan = field(default_factory=LinePlan)
    hold_wait: HoldWaitPlan = field(default_factory=HoldWaitPlan)
    content: ContentPlan = field(default_factory=ContentPlan)
    recording: RecordingPlan = field(default_factory=RecordingPlan)
    escape: EscapePlan = field(default_factory=EscapePlan)
    allowed_refer_to: re.Pattern[str] | None = None
    """URIs that the caller's side may send us to by REFER."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of the route's texts, for tool functions."""
    listening: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` for a session that only listens to a bridged call."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The fetched data of a call have come, or will not (``failure`` says why).

    ``plan`` replaces the machine's: the same, with the texts that the data are in. It comes once,
    before the session is up. ``ms`` is how long the data of ``[route.data]`` took, None without
    that; ``history`` is what the record gets of ``[route.caller_history]``.
    """

    plan: CallPlan
    ms: int | None
    failure: str = ""
    history: Mapping[str, Any] | None = None
