"""What a call is to do, decided before it begins: the settings of its route."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.audio.g711 import Codec


@dataclass(frozen=True, slots=True)
class DtmfPlan:
    """Keys: see :class:`gateway.dialplan.models.Digits`; ``text`` makes the item's words."""

    enabled: bool = True
    inband: bool = False
    """The audio is listened to for keys, too."""
    inter_digit_timeout: float = 3.0
    finish_on_key: str = "#"
    max_digits: int = 32
    interrupt: bool = True
    text: Callable[[str], str] = "The caller pressed {} on the telephone keypad.".format


@dataclass(frozen=True, slots=True)
class Destination:
    """Where calls may be transferred to: see :class:`gateway.dialplan.tools.Transfer`."""

    name: str
    to: str
    """A sip or tel URI; ``{number}`` in it stands for the number asked for."""
    mode: str = "blind"
    """blind, attended or bridge."""
    allowed_numbers: re.Pattern[str] | None = None
    """Numbers that the model may name; None when this is one destination only."""
    description: str = ""
    trunk: str = ""
    ring_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """The tool ``transfer_call``, offered where there are destinations."""

    destinations: tuple[Destination, ...] = ()
    sound: str = "ringback"
    listen: bool = False
    """Whether the session goes on listening once caller and human are joined."""


@dataclass(frozen=True, slots=True)
class SendDtmfPlan:
    """The tool ``send_dtmf``: see :class:`gateway.dialplan.tools.SendDtmf`."""

    enabled: bool = False
    mode: str = "auto"


@dataclass(frozen=True, slots=True)
class HoldPlan:
    """The tool ``hold``."""

    enabled: bool = False
    sound: str = "chime"
    max_duration: float = 60.0


@dataclass(frozen=True, slots=True)
class LanguagePlan:
    """The tool ``set_language``."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What each is called, by its code (ISO 639-1)."""
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``session.update`` for each; none: the tool is not offered."""


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """The tool ``collect_digits``."""

    enabled: bool = False
    timeout: float = 15.0
    """How long a key may take, if the model does not say."""
    max_digits: int = 32
    private: bool = False
    """The digits are told to the model, and to no log or record."""


@dataclass(frozen=True, slots=True)
class SchedulePlan:
    """The tool ``schedule_callback``; it is run outside, as functions are."""

    enabled: bool = False
    max_days: int = 14


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """One function that lives outside of the call."""

    check: Callable[[str], str] = lambda _arguments: ""
    """Returns what is wrong with arguments (JSON text), for the model; empty: nothing."""
    timeout: float = 30.0
    """Without a result by then it is answered for, and forgotten."""
    filler_delay: float = 0.0
    """Seconds until the caller gets ``filler_text`` or ``filler_sound``; 0: never."""
    filler_text: str = ""
    filler_sound: str = ""
    approval: bool = False
    """It may not be used without a rule that approves it."""


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """See :class:`gateway.dialplan.tools.Approval`."""

    tool: str
    """A name, with * and ? as in file names."""
    policy: str
    """allow, deny, ask_caller or ask_http."""
    when: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Arguments that all have to be so; JSON for what is no text."""
    timeout: float = 20.0
    prompt: Callable[[str, Mapping[str, Any]], str] = lambda tool, _arguments: tool
    """What the caller is asked, for a tool and its arguments."""


@dataclass(frozen=True, slots=True)
class OutboundPlan:
    """A call that the gateway places."""

    ring_timeout: float = 45.0
    early_media: bool = False
    """Whether the session hears what comes before the answer."""


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What a call is told when its money is nearly spent, and what becomes of it when it is."""

    warning_message: str = "The time for this call is nearly used up. Bring it to an end."
    """A system message for the model."""
    warning_response: bool = False
    """Whether the model is asked to say something about it at once."""
    goodbye: str = "The time for this call is used up. Goodbye."
    """The caller's last words from us."""
    transfer_to: str = ""
    """Name of the destination to transfer to instead."""


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """When a call that came in is answered: see :class:`gateway.dialplan.models.Answer`."""

    mode: str = "when_ready"
    """when_ready, early_media or immediate."""
    sound: str = ""
    """What the caller hears until the model is ready."""
    play_to_end_seconds: float = 0.0
    """So long the sound is heard, even if the model is ready before."""


@dataclass(frozen=True, slots=True)
class InterruptionPlan:
    """Barge-in: see :class:`gateway.dialplan.turn_taking.Interruptions`."""

    mode: str = "immediate"
    """immediate, adaptive or disabled."""
    min_speech_ms: int = 250
    """Speech shorter than this is none."""
    force_interrupt_ms: int = 1500
    """Speech that lasts so long is an interruption, whatever its words."""
    transcript_timeout: float = 1.5
    """For the words of speech that is over; without them by then it was an interruption."""
    backchannel_phrases: frozenset[str] = frozenset()
    """Words that ask for nothing, as :func:`gateway.call.playout.barge_in.words_of` has them."""
    uninterruptible_greeting: bool = False
    uninterruptible_patterns: tuple[re.Pattern[str], ...] = ()
    """An answer in whose words one of these is found is not interrupted."""
    by_gateway: bool = False
    """The server neither cancels nor answers by itself when the caller has spoken."""
    transcribed: bool = False
    """The words of the caller are to come."""
    padding_ms: int = 0
    """What the server counts as speech before and after it."""


@dataclass(frozen=True, slots=True)
class UserIdlePlan:
    """A caller who says nothing: see :class:`gateway.dialplan.turn_taking.UserIdleTimeout`."""

    timeout: float = 0.0
    """0: they may be silent for as long as they like."""
    prompt: str = "Are you still there?"
    max_prompts: int = 2
    goodbye: str = "I cannot hear you. Goodbye."
    transfer_to: str = ""


@dataclass(frozen=True, slots=True)
class SilencePlan:
    """A caller who waits for a response and hears nothing: see
    :class:`gateway.dialplan.turn_taking.Silence`."""

    seconds: float = 0.0
    """0: never too long."""
    filler_sound: str = ""
    filler_delay: float = 2.0


@dataclass(frozen=True, slots=True)
class MachineDetectionPlan:
    """A caller that is a machine: ``[route.machine_detection]``."""

    actions: Mapping[str, str] = field(default_factory=dict)
    """off, log, leave_message, hangup or transfer, for music, voicemail and bot."""
    messages: Mapping[str, str] = field(default_factory=dict)
    """The last words to each."""
    music_threshold: float = 20.0
    greeting_threshold: float = 8.0
    voicemail_patterns: tuple[re.Pattern[str], ...] = ()
    bot_equal_turns: int = 12
    """So many turns of the same length are a bot's."""
    bot_repeats: int = 3
    """The same words so many times are a bot's."""
    transfer_to: str = ""
    beep_timeout: float = 0.0
    """So long after a greeting a message waits for the beep."""

    @property
    def listens(self) -> bool:
        """Whether the sound itself is looked at."""
        return any(self.actions.get(kind, "off") != "off" for kind in ("music", "voicemail"))


@dataclass(frozen=True, slots=True)
class FallbackStep:
    """One thing to do about a session that is lost or not to be had: see
    :class:`gateway.dialplan.sections.FallbackStep`."""

    action: str
    """reconnect, server, announcement, transfer, busy, redirect or hangup."""
    timeout: float = 0.0
    """How long it is tried, or lasts."""
    sound: str = ""
    """What the caller hears meanwhile, in a call that is answered."""
    server: int = 0
    """The server, as :class:`gateway.call.outputs.OpenSession` counts them."""
    transfer_to: str = ""
    """Name of the destination (transfer), or a SIP URI (redirect)."""


@dataclass(frozen=True, slots=True)
class GuardrailPlan:
    """Words that are not to be said: see :class:`gateway.dialplan.sections.Guardrail`."""

    speaker: str = "agent"
    """agent, caller or both."""
    pattern: re.Pattern[str] | None = None
    """Found in the words; None where only ``url`` decides."""
    url: str = ""
    """Asked about the words (POST); empty: nobody is."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 1.0
    on_timeout: str = "allow"
    """allow or deny, where no answer came in time or none that is understood."""
    action: str = "replace"
    """replace, end or transfer."""
    replacement: str = ""
    transfer_to: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ResponseFailurePlan:
    """Answers that fail: see :class:`gateway.dialplan.sections.ResponseFailure`."""

    message: str = "Sorry, something went wrong. Could you say that again?"
    retries: int = 1
    """How often a failed response is asked for again before the caller is told."""
    content_filter_message: str = "Sorry, I cannot talk about that."
    """For an answer that the server's content filter stopped."""
    continue_incomplete: bool = False
    """An answer that ended at max_output_tokens is gone on with."""
    sound: str = "chime"
    """Heard where not even the words come."""
    sound_duration: float = 2.0
    max_failures: int = 3
    """So many failures in a row end the call."""
    goodbye: str = "I am sorry, this does not work at the moment. Goodbye."
    transfer_to: str = ""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """How much of a long conversation the session keeps."""

    max_turns: int = 0
    """Turns of the caller; 0: all."""
    strategy: str = "delete"
    """delete or summarize."""
    instructions: str = ""
    """For the summary."""
    timeout: float = 15.0
    """Without a summary by then the turns are deleted."""


@dataclass(frozen=True, slots=True)
class PostCallPlan:
    """What the model is asked about the call at its end, without the caller hearing of it."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """Instructions by name."""
    timeout: float = 8.0


@dataclass(frozen=True, slots=True)
class ContentPlan:
    """All of it."""

    guardrails: tuple[GuardrailPlan, ...] = ()
    response_failure: ResponseFailurePlan = field(default_factory=ResponseFailurePlan)
    context: ContextPlan = field(default_factory=ContextPlan)
    post_call: PostCallPlan = field(default_factory=PostCallPlan)


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Settings of one call; seconds and names as in the dialplan."""

    route: str
    codec: Codec
    """The session's law, both ways: the one that the leg is expected to speak."""
    greeting: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the route says of the call, for its record."""
    """The ``response`` of the first ``response.create``; None when the caller speaks first."""
    dtmf: DtmfPlan = field(default_factory=DtmfPlan)
    answer: AnswerPlan = field(default_factory=AnswerPlan)
    goodbye_timeout: float = 10.0
    """A goodbye that has not come to its end this long after the model asked to hang up is cut."""
    max_call_duration: float = 3600.0
    rtp_timeout: float = 30.0
    """0 never ends a call for want of RTP."""
    silence_on_hold: bool = True
    """Whether the session hears silence while the caller has us on hold, or nothing at all (its
    voice activity detection and idle time-out then stand still)."""
    server_interrupts: bool = True
    """The server's voice activity detection cancels the running response by itself
    (``interrupt_response``); without it, speech of the caller cuts nothing."""
    server_responds: bool = True
    """The server's voice activity detection asks for a response when a turn of the caller ends
    (``create_response``)."""
    retry_after: int = 5
    """Seconds, in the Retry-After of a 503."""
    trusted: bool = True
    """The model may be asked before the ACK: the caller is known to be there, or a trunk's."""
    outbound: OutboundPlan | None = None
    """None for a call that came in."""
    transfer: TransferPlan = field(default_factory=TransferPlan)
    send_dtmf: SendDtmfPlan = field(default_factory=SendDtmfPlan)
    hold: HoldPlan = field(default_factory=HoldPlan)
    fallback: tuple[FallbackStep, ...] = ()
    """In this order; none of them ends the call at once."""
    known_outage: str = ""
    """What is known to be wrong with the route's server before the call begins."""
    handover_before_expiry: float = 60.0
    """So long before the server ends a session another one is opened; 0 lets it end."""
    budget: BudgetPlan = field(default_factory=BudgetPlan)
    interruptions: InterruptionPlan = field(default_factory=InterruptionPlan)
    idle: UserIdlePlan = field(default_factory=UserIdlePlan)
    silence: SilencePlan = field(default_factory=SilencePlan)
    machine_detection: MachineDetectionPlan = field(default_factory=MachineDetectionPlan)
    content: ContentPlan = field(default_factory=ContentPlan)
    allowed_refer_to: re.Pattern[str] | None = None
    """URIs that the caller's side may send us to by REFER."""
    functions: Mapping[str, FunctionPlan] = field(default_factory=dict)
    """Functions that live outside and may be run, by name."""
    approvals: tuple[ApprovalRule, ...] = ()
    """Asked in order; the first that fits decides. None fits: allowed, unless it needs approval."""
    language: LanguagePlan = field(default_factory=LanguagePlan)
    collect_digits: CollectPlan = field(default_factory=CollectPlan)
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the route's texts, for functions outside."""
    say_seconds: float = 10.0
    """Before a transfer, a hold or keys, what is being said is heard out, at most so long."""
    listening: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` for a session that only listens."""
    truncate_margin_ms: int = 0
    """Taken off every ``audio_end_ms``, for a server that counts an item shorter than it sent."""
