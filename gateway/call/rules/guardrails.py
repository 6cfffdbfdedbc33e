# SPDX-License-Identifier: GPL-2.0-or-later
"""Guardrails: stop a response with words that must not be said, and say something else instead.

The model's transcript comes ahead of its audio, so as a rule the words themselves are not heard;
audio before them in the same response may be, and is in the decision (``heard_ms``). A guardrail
looks at the text of one item as a whole, so it does not matter how it was split into deltas.

A guardrail about the caller's words refuses the turn: it stops the response to that turn, also
where the response begins only after the words are known, and where the model first calls a tool.
What runs or is heard at that moment is interrupted, whatever it answers, unless the response to
that turn is over and none of its audio is queued; later responses, to other turns alone, go on.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from gateway.call import inputs
from gateway.call.call_record import GuardrailDecision, append_capped
from gateway.call.conversation.barge_in import drop_response, interrupt
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.outputs import CheckContent, Output
from gateway.call.plan import GuardrailPlan
from gateway.call.tools.commands import SendImage, SendMessage
from gateway.ending import EndReason
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    CreateResponse,
    InputCommitted,
    InputTranscribed,
    ResponseCreated,
)

WINDOW = 600
"""Characters before the new ones in which a pattern is searched, too; a sentence that is longer
goes to a service before its end."""

MAX_ITEMS = 32
"""Items of the agent whose text is kept; turns of the caller whose answers, and refusals, are
known."""

MAX_CHECKS = 16
"""Requests to services without an answer at a time; a sentence beyond these is not sent, and
decided by ``on_timeout``."""

MAX_SAID = 8000
"""Characters of a part's deltas that are compared with its final transcript; what follows counts
as new."""

MAX_TEXT = 2000
"""Characters of one request to a service, the last of the text."""

_KEYS = "keys"
"""Name of a turn of DTMF digits."""

_SENTENCE = re.compile(r"[.!?…:;]\s*$|[\u3002\uff01\uff1f]")


@dataclass(slots=True)
class _Words:
    """Text of one item of the agent, as far as its transcript has come."""

    response_id: str
    part: int = 0
    """Index of the latest content part."""
    said: str = ""
    """From the beginning of that part, at most :data:`MAX_SAID` characters."""
    tail: str = ""
    """Its last ``2 * WINDOW`` characters."""
    sentence: str = ""
    """The end that was not sent to a service yet, at most ``MAX_TEXT`` characters."""


@dataclass(slots=True)
class _Check:
    """Words that a guardrail decides about, at once or by the answer of its service."""

    rule: int
    """Index of the guardrail in the route."""
    who: str
    """agent or caller."""
    response_id: str
    """Response with the words; "" for the caller's."""
    item_id: str
    until: float
    """When the answer is late (s)."""


class _Turns:
    """Turns of the caller, which response answers each, and the turns that must not be answered
    (refused, because a guardrail stopped the caller's words)."""

    def __init__(self) -> None:
        self._answers: BoundedDict[str, str | None] = BoundedDict(MAX_ITEMS)
        """Id of the answering response by turn, oldest first; "" while it is still to come, None
        where none is."""
        self._refused: deque[str] = deque(maxlen=MAX_ITEMS)
        self._unnamed = 0
        """Turns that came without an id."""
        self.latest = ""
        """Id of the turn that was added last; "" before the first."""

    def add(self, item_id: str, answer: str = "") -> None:
        """Add a turn of the caller that is over; nothing if it is known. Above ``MAX_ITEMS`` the
        oldest is forgotten.

        Args:
            item_id: "" where the server gives none: then each call adds another turn, ``turn_<n>``.
            answer: id of the response that answers it; "" while it is to come.
        """
        if not item_id:  # some servers give no ids: each is another turn
            self._unnamed += 1
            item_id = f"turn_{self._unnamed}"
        if item_id in self._answers:
            return
        self._answers[item_id] = answer
        self.latest = item_id

    def note_answer(self, response_id: str) -> bool:
        """Note that a response answers all turns without an answer, or the latest turn where there
        are none; return whether one of them is refused, so that the response must be dropped."""
        turns = [turn for turn, answer in self._answers.items() if answer == ""] or [self.latest]
        for turn in turns:
            if turn in self._answers:
                self._answers[turn] = response_id
        return any(turn in self._refused for turn in turns)

    def refuse(self, item_id: str, running: str | None) -> str | None:
        """Refuse a turn, added if it is new (without an id it always is): from now on
        :meth:`note_answer` returns True for its answer. Returns the id of the response that answers
        it, "" while that is to come, None if this id was refused before.

        Args:
            running: id of the running response, which counts as the answer where this turn was not
                added before; None for none.
        """
        if item_id in self._refused:
            return None
        self.add(item_id, running or "")
        item_id = item_id or self.latest
        self._refused.append(item_id)
        return self._answers[item_id] or ""

    def add_keys(self) -> None:
        """Add DTMF digits that the model is told as a turn, which is answered by itself; nothing
        where the latest turn is one of digits, too, and has no answer yet."""
        if self.latest != _KEYS or self._answers[_KEYS] != "":
            self._answers.pop(_KEYS, None)
            self.add(_KEYS)

    def knows(self, item_id: str) -> bool:
        """Return whether this turn is known to be over."""
        return item_id in self._answers

    def settle(self) -> None:
        """Note that no answer is to come to the turns that have none."""
        for turn in [turn for turn, answer in self._answers.items() if answer == ""]:
            self._answers[turn] = None

    def allow(self) -> None:
        """Allow answers to the turns refused so far, as a command asks for a response to them;
        those dropped before stay dropped."""
        self._refused.clear()


class Guardrails:
    """Applies the route's guardrails (``[[route.guardrail]]``) to the words of agent and caller, by
    a pattern at once, or by the answer of an HTTP service. Only transcripts are looked at, item by
    item."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.ContentChecked,
        inputs.ToolRequest,
        inputs.DigitPressed,
        InputCommitted,
        ResponseCreated,
        AgentTranscriptDelta,
        AgentTranscript,
        InputTranscribed,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._rules = control.plan.content.guardrails
        self._items: BoundedDict[str, _Words] = BoundedDict(MAX_ITEMS)
        self._stopped: deque[str] = deque(maxlen=MAX_ITEMS)
        """Ids of responses that were stopped; their further words are not checked."""
        self._turns = _Turns()
        self._phrases: deque[CreateResponse] = deque(maxlen=8)
        """Requests for replacements; no guardrail checks the words of their responses."""
        self._checks: dict[str, _Check] = {}
        self._asked = 0

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Check new words of agent or caller; act on the answer of a service; drop a response that
        answers a refused turn. Nothing without guardrails.

        A ``SendMessage`` or ``SendImage`` with ``respond`` allows answers to refused turns again.
        """
        if not self._rules:
            return []
        match input:
            case inputs.ContentChecked(key, allow, reason):
                return self._on_answer(key, allow, reason, now)
            case inputs.ToolRequest(command=SendMessage(respond=True) | SendImage(respond=True)):
                self._turns.allow()  # whoever sent it knows what is to be answered
            case inputs.DigitPressed():
                # Before the recording, which forgets ``digit_taken``.
                if self._control.plan.dtmf.enabled and not self._control.digit_taken:
                    self._turns.add_keys()
            case inputs.ServerEventReceived(event=InputCommitted(item_id)):
                if not self._control.capabilities.turn_events:
                    self._turns.settle()  # it answers a turn before the next, or not at all
                self._turns.add(item_id)
            case inputs.ServerEventReceived(event=ResponseCreated(response_id)):
                return self._note_answer_or_drop(response_id, now)
            case inputs.ServerEventReceived(event=AgentTranscriptDelta() as delta):
                words = self._find_or_add_words(delta)
                return self._check_agent(delta.item_id, words, delta.delta, now, whole=False)
            case inputs.ServerEventReceived(event=AgentTranscript() as said):
                words = self._find_or_add_words(said)
                new = _take_new_words(words, said.transcript)
                return self._check_agent(said.item_id, words, new, now, whole=True)
            case inputs.ServerEventReceived(event=InputTranscribed(item_id, text)):
                turn = item_id or self._turns.latest
                return self._check_words("caller", turn, "", text, text, now)
        return []

    def on_session_over(self) -> None:
        """Forget items, turns, refusals, stopped responses and unanswered checks, since the session
        is lost, closed on hold or handed over: another one may use the same ids. Answers of
        services that come later are ignored. Replacements that were requested stay known."""
        self._items.clear()
        self._stopped.clear()
        self._turns = _Turns()
        self._checks.clear()

    def tick(self, now: float) -> list[Output]:
        """Decide each check whose service has not answered in time, as its ``on_timeout`` says."""
        late = [key for key, check in self._checks.items() if now >= check.until]
        return [output for key in late for output in self._on_answer(key, None, "too late", now)]

    @property
    def deadline(self) -> float | None:
        """When the first unanswered check is late (s); None without one."""
        return min((check.until for check in self._checks.values()), default=None)

    # ---- how

    def _note_answer_or_drop(self, response_id: str, now: float) -> list[Output]:
        """Note the response as the answer of all turns that have none, or of the latest: a later
        refusal of one of these stops it. If one is refused already, drop the response, check none
        of its words, and queue again a request of ours, with settings of its own, that it may have
        displaced. Nothing for a response to such a request."""
        if self._control.responses.answers_turn(response_id) and self._turns.note_answer(
            response_id
        ):
            self._stopped.append(response_id)
            self._control.responses.resend_after_dropped(now)
            return drop_response(self._control, response_id, "guard", now)
        return []

    def _find_or_add_words(self, of: AgentTranscriptDelta | AgentTranscript) -> _Words:
        """Return the text so far of an item of the agent; begin it anew if the item is new, or has
        come with another response. Its parts are words of one text, with a space between them.
        Above ``MAX_ITEMS`` the oldest item is forgotten."""
        words = self._items.get(of.item_id)
        if words is None or words.response_id != of.response_id:  # some servers use ids again
            words = self._items[of.item_id] = _Words(of.response_id, of.content_index)
        if words.part != of.content_index:
            words.part, words.said = of.content_index, ""
            words.tail, words.sentence = words.tail + " ", words.sentence + " "
        return words

    def _check_agent(
        self, item_id: str, words: _Words, new: str, now: float, *, whole: bool
    ) -> list[Output]:
        """Add new words of the agent to their item and check them. A pattern is searched in them
        and the ``WINDOW`` characters before them. A service gets whole sentences, and one that is
        longer than ``WINDOW`` characters before its end. Nothing for a stopped response and for our
        replacements. Once a replacement was requested, an item that reads so far like the beginning
        of one is not checked yet: those words are checked with what follows.

        Args:
            whole: the item's text is complete, so that its last word and sentence are, too.
        """
        asked = self._control.responses.request_of(words.response_id)
        ours = any(asked is phrase for phrase in self._phrases)
        if ours or words.response_id in self._stopped:
            return []
        window = words.tail[-WINDOW:] + new
        words.tail = window[-2 * WINDOW :]
        words.said = (words.said + new)[:MAX_SAID]
        words.sentence = (words.sentence + new)[-MAX_TEXT:]
        if self._is_replacement(words.tail):
            return []  # ours, of a server that does not say what it answers
        sentence = ""
        if whole or _SENTENCE.search(words.sentence) or len(words.sentence) >= WINDOW:
            sentence, words.sentence = words.sentence.strip(), ""
        return self._check_words(
            "agent", item_id, words.response_id, window, sentence, now, open=not whole
        )

    def _is_replacement(self, said: str) -> bool:
        """Return whether these words are the beginning of the replacement of any guardrail; only
        once one was requested. For servers that do not name the request that a response answers."""
        said = " ".join(said.split())
        phrases = (
            (" ".join(rule.replacement.split()) for rule in self._rules) if self._phrases else ()
        )
        return bool(said) and any(phrase.startswith(said) for phrase in phrases)

    def _check_words(
        self,
        who: str,
        item_id: str,
        response_id: str,
        window: str,
        sentence: str,
        now: float,
        *,
        open: bool = False,
    ) -> list[Output]:
        """Apply each guardrail for this speaker, in the route's order. A guardrail without a
        service whose pattern is found in ``window`` is enforced at once, and those after it are not
        applied. A guardrail with a service has it check ``sentence``, unless the guardrail also has
        a pattern that is not found in ``sentence``.

        Args:
            who: agent or caller.
            response_id: "" for the caller.
            sentence: complete sentence that was not sent to a service yet; "" without one.
            open: the last word of ``window`` may still become another word, so a match there waits.
        """
        outputs: list[Output] = []
        for index, rule in enumerate(self._rules):
            if rule.speaker not in (who, "both"):
                continue
            found = _matches(rule, window, open=open)
            if found and not rule.url:
                check = _Check(index, who, response_id, item_id, now)
                return [*outputs, *self._enforce(check, "words", "", now)]
            if rule.url and sentence and (rule.pattern is None or rule.pattern.search(sentence)):
                outputs += self._ask_service(index, who, response_id, item_id, sentence, now)
        return outputs

    def _ask_service(
        self, index: int, who: str, response_id: str, item_id: str, text: str, now: float
    ) -> list[Output]:
        """Return ``CheckContent`` for the service of guardrail ``index``, with the last
        ``MAX_TEXT`` characters, and keep the check until its answer or deadline. With
        ``MAX_CHECKS`` open already, log ``guardrail_skipped`` instead, and enforce the
        guardrail if its ``on_timeout`` is deny."""
        rule = self._rules[index]
        self._asked += 1
        key = f"guard-{self._asked}"
        check = _Check(index, who, response_id, item_id, now + rule.timeout)
        if len(self._checks) >= MAX_CHECKS:
            note = self._control.timeline.note(now, "guardrail_skipped", "warning", rule=rule.name)
            denied = rule.on_timeout == "deny"
            return [note, *(self._enforce(check, "timeout", "too many", now) if denied else [])]
        self._checks[key] = check
        return [CheckContent(key, index, who, text[-MAX_TEXT:])]

    def _on_answer(self, key: str, allow: bool | None, reason: str, now: float) -> list[Output]:
        """Handle the answer of a service: enforce the guardrail unless the words are allowed.
        Nothing for a key that is unknown, or was decided before.

        Args:
            allow: None where no valid answer came in time: logged as ``guardrail_timeout`` and
                decided by ``on_timeout``.
            reason: for log and record.
        """
        check = self._checks.pop(key, None)
        if check is None:
            return []
        rule, outputs = self._rules[check.rule], list[Output]()
        by = "http"
        if allow is None:
            by, allow = "timeout", rule.on_timeout == "allow"
            outputs.append(
                self._control.timeline.note(
                    now,
                    "guardrail_timeout",
                    "warning",
                    rule=rule.name,
                    reason=reason,
                    allowed=allow,
                )
            )
        return outputs if allow else outputs + self._enforce(check, by, reason, now)

    def _enforce(self, check: _Check, by: str, reason: str, now: float) -> list[Output]:
        """Stop the offending response, record and log the decision, with the audio of the response
        that was heard (ms), and do the guardrail's action. ``replace`` requests the replacement, if
        there is one. ``end`` terminates with the replacement as last words. ``transfer`` terminates
        by a transfer, with the replacement as last words where the transfer fails.

        For the caller's words the answer to that turn is stopped, also one that is still to come;
        for the latest turn, requests that wait to be sent and would answer it are dropped. Where
        the gateway decides about interruptions and none was sent, no answer is to come. Playout and
        all running responses are interrupted, unless the offending response is over and none of its
        audio is queued. Nothing if the response or turn was stopped before, or the call is
        ending.

        Args:
            by: words, http or timeout.
            reason: of the service; "" without one.
        """
        control, rule = self._control, self._rules[check.rule]
        response = check.response_id
        if control.termination is not None or response in self._stopped:
            return []
        # Of the agent the answer itself is stopped; of the caller, what answers them.
        if check.who == "caller":
            turn_over = self._turns.knows(check.item_id)
            found = self._turns.refuse(check.item_id, control.responses.active)
            if found is None:
                return []
            response = found
            if self._turns.latest == check.item_id:
                control.responses.forget_answers()
                requested = control.responses.answer_requested
                if turn_over and control.plan.interruptions.by_gateway and not requested:
                    self._turns.settle()  # what is still to come would answer another turn
        if response:
            self._stopped.append(response)
        decision = GuardrailDecision(
            round(control.timeline.ms(now), 1),
            rule.name,
            check.who,
            check.item_id,
            by,
            rule.action,
            reason,
        )
        append_capped(control.timeline.record.content.guardrails, decision)
        outputs: list[Output] = [
            control.timeline.note(
                now,
                "guardrail",
                "warning",
                rule=rule.name,
                who=check.who,
                item_id=check.item_id,
                by=by,
                action=rule.action,
                reason=reason,
            )
        ]
        over = response and response not in control.responses.running
        if not over or control.playback.is_queued(response):
            outputs += interrupt(control, "guard", now)
        if response:
            control.playback.drop_response(response)  # over or not: more of it may come
        decision.heard_ms = control.playback.heard_ms(response)
        if rule.action != "replace":
            to = rule.transfer_to if rule.action == "transfer" else ""
            control.terminate(Termination(EndReason.GUARDRAIL, rule.name, rule.replacement, to))
        elif rule.replacement:
            phrase = control.exact_words(rule.replacement)
            self._phrases.append(phrase)
            outputs += control.request_response(phrase, now)
        return outputs


def _take_new_words(words: _Words, transcript: str) -> str:
    """Return the end of the final transcript that the deltas of the part (``words``) did not have;
    "" for none, all of it where no delta came. White space does not count.

    Where the two differ (a delta was lost), return the end from the beginning of that word, and set
    ``tail`` and ``sentence`` of ``words`` as if the final text before it had come.
    """
    if not words.said:
        return transcript
    said, whole = " ".join(words.said.split()), " ".join(transcript.split())
    pairs = enumerate(zip(said, whole, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(said), len(whole)))
    if same == len(said):
        return whole[same:]
    if same < len(whole):
        begin = whole.rfind(" ", 0, same) + 1
        words.tail, words.sentence = whole[max(0, begin - WINDOW) : begin], ""
        return whole[begin:]
    return ""


def _matches(rule: GuardrailPlan, window: str, *, open: bool) -> bool:
    """Return whether the guardrail's pattern is found in ``window``; False without a pattern, and
    for empty matches.

    Args:
        open: a match that reaches the end does not count, since the next delta may go on with that
            word.
    """
    if rule.pattern is None:
        return False
    for match in rule.pattern.finditer(window):
        if match.end() > match.start() and (not open or match.end() < len(window)):
            return True
    return False
