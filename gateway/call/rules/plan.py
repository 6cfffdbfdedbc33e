"""Settings of a call's content: what must not be said, answers that fail, long conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GuardrailPlan:
    """Words that are not to be said: see :class:`gateway.dialplan.content.Guard`."""

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
    """Answers that fail: see :class:`gateway.dialplan.content.ResponseFallback`."""

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
