# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan of one call: the settings of its route as values, made before the call begins.

A class named for ``[route.X]`` has the values of that section, with the call's variables filled
into its texts. Times in s, unless a name ends in ``_ms``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.audio import Codec
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
    """DTMF input: ``[route.dtmf]``; how the caller's digits become a message to the model."""

    enabled: bool = True
    inband: bool = False
    """Detect DTMF tones in the audio, too."""
    inter_digit_timeout: float = 3.0
    """Pause (s) that completes a run of digits."""
    finish_on_key: str = "#"
    """Key that completes a run; "" for none."""
    max_digits: int = 32
    """Number of digits that completes a run."""
    interrupt: bool = True
    """A digit stops the model's speech, as barge-in does."""
    text: Callable[[str], str] = "The caller pressed {} on the telephone keypad.".format
    """Makes the message of a run's digits; :data:`RESPONSE_MS` in the message is replaced by how
    long the caller waited for the last response (ms)."""


@dataclass(frozen=True, slots=True)
class DisclosurePlan:
    """What is said at the start of the call: that the caller speaks with an AI."""

    words: str
    before: bool = True
    """As a response of its own before the greeting; False: the greeting begins with it."""
    interruptible: bool = False
    exact: bool = False
    """Where a session says words in its own way (Live), the disclosure is synthesised and played as
    audio."""


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """One tool function, as far as the call needs to know it."""

    check: Callable[[str], str] = lambda _arguments: ""
    """Returns what is wrong with arguments (JSON text), for the model; "" for nothing."""
    timeout: float = 30.0
    """Without a result within this (s) the model gets an error, and a later result is dropped."""
    filler_delay: float = 0.0
    """Seconds without a result until the caller hears ``filler_text`` or ``filler_sound``, once;
    0: never."""
    filler_text: str = ""
    """Said by the model; where it is set, ``filler_sound`` is not played."""
    filler_sound: str = ""
    """Played in a loop until the result comes or the model speaks."""
    approval: bool = False
    """It runs only where an approval rule applies and approves it."""


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """A rule about the approval of tool calls: :class:`gateway.dialplan.tool_sections.Approval`."""

    tool: str
    """Name of a tool, with * and ? as in file names; of an MCP tool
    ``{label of its server}_{name}``."""
    policy: str
    """allow, deny, ask_caller (by DTMF) or ask_http (a service decides)."""
    when: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Patterns by name of an argument: the rule applies where each is found in its argument, which
    has to be given. An argument that is no string is matched as JSON."""
    timeout: float = 20.0
    """Longest wait (s) for the decision of caller or service; without a decision the tool call is
    refused."""
    prompt: Callable[[str, Mapping[str, Any]], str] = lambda tool, _arguments: tool
    """Makes the question to the caller, from a tool and its arguments."""


@dataclass(frozen=True, slots=True)
class OutboundPlan:
    """Settings of a call that the gateway places."""

    ring_timeout: float = 45.0
    """Longest wait (s) for the answer, from the INVITE."""
    early_media: bool = False
    """Whether the session hears the audio before the answer."""


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What is done near the limit of a budget, and when it is spent: ``[route.budget]``."""

    warning_message: str = "The time for this call is nearly used up. Bring it to an end."
    """System message for the model at the warning threshold."""
    warning_response: bool = False
    """Whether a response to it is requested at once."""
    goodbye: str = "The time for this call is used up. Goodbye."
    """Last words to the caller when it is spent, before the call is hung up."""
    transfer_to: str = ""
    """Name of the destination to transfer to instead; ``goodbye`` is for when that fails."""


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """When an inbound call is answered: ``[route.answer]``."""

    mode: str = "when_ready"
    """when_ready: 180, and 200 once the session is up; early_media: the same with 183 and SDP;
    immediate: 200 at once."""
    sound: str = ""
    """Sound for the caller until the session is up; not with when_ready."""
    play_to_end_seconds: float = 0.0
    """The shortest time (s) that the sound is played, even if the session is up before."""


@dataclass(frozen=True, slots=True)
class InterruptionPlan:
    """Barge-in: see :class:`gateway.dialplan.route_sections.Interruptions`."""

    mode: str = "immediate"
    """immediate: any speech interrupts; adaptive: playout pauses, and only speech that is long
    enough and no backchannel interrupts; disabled: none does."""
    min_speech_ms: int = 250
    """adaptive: shorter speech is a false interruption; playout goes on."""
    force_interrupt_ms: int = 1500
    """adaptive: speech of this length is an interruption, whatever its words."""
    transcript_timeout: float = 1.5
    """adaptive: wait (s) for the transcript of a turn; without it the turn is an interruption."""
    backchannel_phrases: frozenset[str] = frozenset()
    """adaptive: phrases that are no interruption, words in lower case with one space between."""
    uninterruptible_greeting: bool = False
    """The greeting is not interrupted."""
    uninterruptible_patterns: tuple[re.Pattern[str], ...] = ()
    """A response with words that match one of these is not interrupted."""
    by_gateway: bool = False
    """The gateway interrupts and requests responses; the server does neither by itself. Set where
    ``mode`` is not immediate, or something is uninterruptible."""
    transcribed: bool = False
    """The session transcribes the caller."""
    padding_ms: int = 0
    """Silence that the server counts into speech before and after it."""


@dataclass(frozen=True, slots=True)
class UserIdlePlan:
    """User-idle timeout: ``[route.idle]``."""

    timeout: float = 0.0
    """Seconds without speech of either side until the prompt, and from each prompt to the next; 0:
    never."""
    prompt: str = "Are you still there?"
    max_prompts: int = 2
    """Prompts in a row without an answer, after which the call ends."""
    goodbye: str = "I cannot hear you. Goodbye."
    """Last words to the caller."""
    transfer_to: str = ""
    """Name of the destination to transfer to instead; ``goodbye`` is for when that fails."""


@dataclass(frozen=True, slots=True)
class SilencePlan:
    """A caller who waits and hears nothing: :class:`gateway.dialplan.route_sections.Silence`."""

    timeout: float = 0.0
    """Longest wait for audio or a tool call of a response that is due (s), after which the session
    is replaced, or without fallback steps the response requested again; 0: no limit."""
    filler_sound: str = ""
    """Played in a loop while the caller waits; "" for none."""
    filler_delay: float = 2.0
    """Seconds of the wait until it is played."""


@dataclass(frozen=True, slots=True)
class MachineDetectionPlan:
    """Machine detection: ``[route.machine_detection]``."""

    actions: Mapping[str, str] = field(default_factory=dict)
    """off, log, leave_message, hangup or transfer, by kind: music, voicemail, bot."""
    messages: Mapping[str, str] = field(default_factory=dict)
    """Last words by kind, with leave_message, and with transfer where that fails."""
    music_threshold: float = 20.0
    """Seconds of hold music that tell of a queue."""
    greeting_threshold: float = 8.0
    """Length (s) of a first turn that tells of a voicemail's greeting."""
    voicemail_patterns: tuple[re.Pattern[str], ...] = ()
    """Words of the other side that tell of a voicemail."""
    bot_equal_turns: int = 12
    """Turns of equal length that tell of a bot."""
    bot_repeats: int = 3
    """Repetitions of the same words that tell of a bot."""
    transfer_to: str = ""
    """Name of the destination, with transfer."""
    beep_timeout: float = 0.0
    """Longest wait (s) for the beep after a voicemail's greeting; 0: none."""

    @property
    def listens(self) -> bool:
        """Whether the caller's sounds are analysed, not only words: the action for music or for
        voicemail is other than ``off``."""
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
    """Estimated MOS, 1 to 4.5."""
    min_level: float = 0.0
    """Of the caller's speech, dBFS; 0: not measured."""
    after: float = 5.0
    """Seconds beyond a limit until the model is told."""
    recovered_after: float = 10.0
    """Seconds within all limits until it is told that the line is good again."""
    hint: str = "Keep to short sentences, speak slowly, and repeat numbers and names."
    """What the model is told to do on a bad line."""
    recovered: str = "The telephone line is good again. Speak as usual."
    """What it is told when the line is good again; "" for nothing."""
    max_hints: int = 1
    """How often the model is told of a bad line in one call."""


@dataclass(frozen=True, slots=True)
class HoldKey:
    """DTMF digits that are sent while the agent waits in the other side's queue, when an
    announcement matches ``words``."""

    words: re.Pattern[str]
    digits: str


@dataclass(frozen=True, slots=True)
class HoldWaitPlan:
    """Hold and wait, in the other side's queue: ``[route.hold_wait]``,
    :class:`gateway.dialplan.route_sections.HoldWait`."""

    enabled: bool = False
    music_threshold: float = 4.0
    """Seconds of music in a row that begin the wait."""
    announcements: tuple[re.Pattern[str], ...] = ()
    """Words of queues; they begin a wait, and nobody who can be talked to says them."""
    max_wait: float = 1800.0
    """Longest wait (s), after which the call is transferred or hung up."""
    transfer_to: str = ""
    """Name of the destination after ``max_wait``; "" hangs up."""
    keys: tuple[HoldKey, ...] = ()
    """Digits to send, by announcement; the first that matches."""
    transcribed: bool = False
    """The session transcribes the other side."""
    quiet: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` for the wait, after which the server begins no response by itself; empty
    where it never does."""
    normal: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` for the end of the wait, which takes ``quiet`` back."""


@dataclass(frozen=True, slots=True)
class FallbackStep:
    """One step after the loss of a session (``[[route.fallback]]``):
    :class:`gateway.dialplan.route_sections.Fallback`."""

    action: str
    """reconnect, server, announcement, transfer, busy, redirect or hangup."""
    timeout: float = 0.0
    """How long a session is tried for, or an announcement lasts (s)."""
    sound: str = ""
    """Sound for the caller meanwhile, in an answered call; the announcement itself."""
    server: int = 0
    """The server, as :class:`gateway.call.outputs.OpenSession` counts them."""
    transfer_to: str = ""
    """Name of the destination (transfer), or a SIP URI (redirect)."""


@dataclass(frozen=True, slots=True)
class GuardrailPlan:
    """A guardrail: ``[[route.guardrail]]``."""

    speaker: str = "agent"
    """Whose words are checked: agent, caller or both."""
    pattern: re.Pattern[str] | None = None
    """Searched in the words; None where only ``url`` decides."""
    url: str = ""
    """Service that is asked about the words (POST); "" for none."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 1.0
    """Longest wait (s) for the service's answer."""
    on_timeout: str = "allow"
    """allow or deny: without an answer in time, or with one that cannot be parsed."""
    action: str = "replace"
    """After the response was stopped: replace (say ``replacement``), end or transfer."""
    replacement: str = ""
    """Said instead; the last words with end and transfer."""
    transfer_to: str = ""
    """Name of the destination, with transfer."""
    name: str = ""
    """For log and record."""


@dataclass(frozen=True, slots=True)
class ResponseFailurePlan:
    """What is done about failed responses: ``[route.response_failure]``."""

    message: str = "Sorry, something went wrong. Could you say that again?"
    """Said when the retries have failed, too."""
    retries: int = 1
    """How often a failed response is requested again before the message."""
    content_filter_message: str = "Sorry, I cannot talk about that."
    """Said in place of a response that the server's content filter stopped."""
    continue_incomplete: bool = False
    """A response that ended at max_output_tokens is continued."""
    sound: str = "chime"
    """Played where the message fails, too, and where a response that is due is not heard; "" for
    none."""
    sound_duration: float = 2.0
    """How long it is played (s)."""
    max_failures: int = 3
    """Failures in a row, retries not counted, that end the call."""
    max_tool_rounds: int = 10
    """Responses in a row that only call tools, with nothing from the caller in between; each one
    beyond counts as a failed response."""
    goodbye: str = "I am sorry, this does not work at the moment. Goodbye."
    """Last words to the caller after ``max_failures``."""
    transfer_to: str = ""
    """Name of the destination to transfer to instead; ``goodbye`` is for when that fails."""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Context trimming: how many turns of a long conversation the session keeps
    (``[route.context]``)."""

    max_turns: int = 0
    """Turns of the caller that are kept, with what follows them; older ones are trimmed once there
    are half as many more. 0: all are kept."""
    strategy: str = "delete"
    """What becomes of older items: delete, or summarize (an out-of-band response makes a summary,
    which takes their place)."""
    instructions: str = ""
    """To the model, for the summary."""
    timeout: float = 15.0
    """Without a summary within this (s) the turns are deleted without one."""


@dataclass(frozen=True, slots=True)
class PostCallPlan:
    """Post-call analysis: ``[route.post_call]``; out-of-band responses at the end of the call, for
    its record."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """Instructions to the model, by the name that the answer has in the record; none: no
    analysis."""
    timeout: float = 8.0
    """Longest wait (s) for all answers together."""


@dataclass(frozen=True, slots=True)
class EscapePlan:
    """How the caller reaches a human without the model: ``[route.escape]``."""

    key: str = ""
    """DTMF digit that asks for one; "" for none."""
    phrases: tuple[tuple[str, ...], ...] = ()
    """Words of the caller that ask for one, as ``gateway.text.words_of`` splits them."""
    to: tuple[str, ...] = ()
    """Names of destinations, in the order in which they are tried; none: there is no escape."""
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
    """Role and text of the messages that each session of the call begins with."""


@dataclass(frozen=True, slots=True)
class ToolsPlan:
    """Tools of the model: the gateway's own, functions of the route, and approvals of their use."""

    transfer: TransferPlan = field(default_factory=TransferPlan)
    send_dtmf: SendDtmfPlan = field(default_factory=SendDtmfPlan)
    hold: HoldPlan = field(default_factory=HoldPlan)
    language: LanguagePlan = field(default_factory=LanguagePlan)
    collect_digits: CollectPlan = field(default_factory=CollectPlan)
    disposition: DispositionPlan = field(default_factory=DispositionPlan)
    functions: Mapping[str, FunctionPlan] = field(default_factory=dict)
    """Functions of the route, and ``schedule_callback``, by name."""
    delegate: str = ""
    """Name of the function that does the tasks which a Live session delegates; "" for none."""
    approvals: tuple[ApprovalRule, ...] = ()
    """In order; the first that applies to a tool call decides. Where none does, the tool may run,
    unless :attr:`FunctionPlan.approval` is set."""
    application: bool = False
    """An application sees the session (sideband), and answers calls of functions that the gateway
    does not have."""


@dataclass(frozen=True, slots=True)
class LimitsPlan:
    """Longest times of a call (s)."""

    max_call_duration: float = 3600.0
    """From the ACK of the answer."""
    rtp_timeout: float = 30.0
    """Without RTP for this long the call ends, except on hold; 0: never."""
    goodbye_timeout: float = 10.0
    """Longest wait for the closing words to come, before the call is hung up without them."""
    say_seconds: float = 10.0
    """Longest wait for queued speech to play out before an action begins."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What the realtime server does by itself, and what is done when it fails."""

    interrupts: bool = True
    """Speech of the caller cancels the running response (``interrupt_response``)."""
    responds: bool = True
    """It begins a response when a turn of the caller ends (``create_response``)."""
    truncate_margin_ms: int = 0
    """Taken off every ``audio_end_ms``, for a server that counts an item shorter than it sent."""
    handover_before_expiry: float = 60.0
    """Seconds before a session expires at which a standby session is opened; 0: never."""
    known_outage: str = ""
    """Why it is known to be down before the call begins (health check); "": it is not."""
    retry_after: int = 5
    """Seconds, in the Retry-After of a 503; at least what the server itself told."""
    fallback: tuple[FallbackStep, ...] = ()
    """Fallback steps in their order; without any the call ends when the session is lost."""


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Settings of one call, made of configuration, route and INVITE."""

    route: str
    """Name of the route."""
    codec: Codec
    """Codec of the session, both ways: the one expected on the leg."""
    greeting: Mapping[str, Any] | None = None
    """The ``response`` of the first ``response.create``; None when the caller speaks first."""
    greeting_words: str = ""
    """Words that the greeting says exactly; "" where instructions say what to greet with."""
    greeting_exact: bool = False
    """As :attr:`DisclosurePlan.exact`."""
    greeting_clip: bytes = field(default=b"", repr=False)
    """The greeting as audio, for :class:`gateway.realtime.events.PlayClip`; empty: none."""
    disclosure: DisclosurePlan | None = None
    """None: nothing is disclosed."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the route, for the record."""
    limits: LimitsPlan = field(default_factory=LimitsPlan)
    server: ServerPlan = field(default_factory=ServerPlan)
    tools: ToolsPlan = field(default_factory=ToolsPlan)
    dtmf: DtmfPlan = field(default_factory=DtmfPlan)
    answer: AnswerPlan = field(default_factory=AnswerPlan)
    silence_on_hold: bool = True
    """While the caller has us on hold the session gets silence; False: no audio at all."""
    trusted: bool = True
    """The greeting may be requested before the ACK: the INVITE is a known trunk's, or the caller is
    known to be there."""
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
    """URIs that the caller's side may send us to by REFER; None: none."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of the route's texts, by name, for tool functions."""
    listening: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` after which the session only listens to a bridged call."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Input of the machine, once and before the session is up: the call's data (``[route.data]``,
    ``[route.caller_history]``) were fetched, or could not be."""

    plan: CallPlan
    """Replaces the call's plan: the same, with the data filled into its texts."""
    ms: int | None
    """How long ``[route.data]`` took; None for a route without."""
    failure: str = ""
    """Why ``[route.data]`` could not be fetched; "": it was."""
    history: Mapping[str, Any] | None = None
    """What the record gets of ``[route.caller_history]``; None for a route without."""
