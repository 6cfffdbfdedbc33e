# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks that a Live session delegates to us (``delegation.type = "client"``).

The event has no words: what is wanted is in the conversation, whose transcript comes late. A task
is answered by the result of the route's function.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping

from gateway.call.conversation.control import ConversationControl
from gateway.call.outputs import Output, Send
from gateway.realtime.events import AppendText, DecisionMade, WorkDelegated

NOT_POSSIBLE = "This cannot be looked up or done here. Say so, and go on without it."
"""Context for a voice whose task is refused: the route names no function, or there are too many."""

WORDS_SECONDS = 4.0
"""Longest wait of a task for the words that it is about (s): they come three seconds after the
sound."""

MAX_WAITING = 8
"""Tasks that wait to begin; of more the oldest is refused."""

MAX_PER_MINUTE = 12
"""Tasks that are begun in 60 s; further ones are refused. It bounds a session that delegates one
after another with nobody asking."""

MAX_ENTRIES = 200
"""Entries of the transcript that a task is begun with, the latest."""

Start = Callable[[str, str, str, float], list[Output]]
"""Runs a function: its name, id of the task, arguments (JSON text), time (s)."""


MAX_NAME = 64
"""Characters kept of a question's name, and of a choice."""


def _answer(given: Mapping[str, object]) -> object:
    """Return one answer of a decision: the first of choice (at most ``MAX_NAME`` characters), score
    and probability that it has; None where it has none, since it was declined."""
    for key in ("choice", "score", "probability"):
        if isinstance(value := given.get(key), str | bool | int | float):
            return value[:MAX_NAME] if isinstance(value, str) else value
    return None


class DelegatedTasks:
    """Runs the route's function (``tools.delegate``) for each task that a Live session delegates to
    the client, with the last ``MAX_ENTRIES`` entries of the transcript as its argument.

    A task begins when the transcript has the words it is about, or after ``WORDS_SECONDS``.

    Args:
        start: runs a function: name, id of the task, arguments (JSON text), time.
    """

    def __init__(self, control: ConversationControl, start: Start) -> None:
        self._control = control
        self._start = start
        self._waiting: dict[str, float] = {}
        """When each task is begun at the latest (s), by its id; oldest first."""
        self._begun: deque[float] = deque(maxlen=MAX_PER_MINUTE)
        """When the last tasks were begun (s)."""
        self.words_missing: Callable[[], bool] = lambda: False
        """Whether words of what was said last are still to come."""
        self._decided: dict[str, dict[str, object]] = {}
        """Answers of the latest decision, by the type of event that triggered it."""
        self.words_came = False
        """Words of the caller have come since :meth:`begin_if_transcribed` was last called; set
        from outside, and by a task whose words are here already."""

    @property
    def busy(self) -> bool:
        """Whether a task waits to begin."""
        return bool(self._waiting)

    @property
    def deadline(self) -> float | None:
        """When the next waiting task begins at the latest (s); None while none waits."""
        return min(self._waiting.values(), default=None)

    def on_delegated(self, event: WorkDelegated, now: float) -> list[Output]:
        """Log a delegation; if its target is the client, keep the task until it begins. Beyond
        ``MAX_WAITING`` waiting tasks the oldest is refused (``NOT_POSSIBLE``).

        Where the route has no function for tasks, nothing is kept, and the session is told that it
        cannot be done (``NOT_POSSIBLE``); not if the route has an application, which may answer.
        """
        tools = self._control.plan.tools
        fields = {"delegation_id": event.id, "target": event.target}
        note = self._control.timeline.note(now, "work_delegated", "info", **fields)
        if event.target != "client":
            return [note]
        if tools.delegate:
            self._waiting[event.id] = now + WORDS_SECONDS
            self.words_came = not self.words_missing()
            if len(self._waiting) <= MAX_WAITING:
                return [note]
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            return [note, Send(AppendText("thinking", NOT_POSSIBLE, oldest))]
        if tools.application:
            return [note]
        return [note, Send(AppendText("thinking", NOT_POSSIBLE, event.id))]

    def on_decision(self, event: DecisionMade, now: float) -> list[Output]:
        """Log the answers of a decision (``decided``); nothing where they are those of the same
        trigger's last decision. One without a trigger is always logged."""
        answers = {str(one.get("name") or "")[:MAX_NAME]: _answer(one) for one in event.answers}
        if event.source and self._decided.get(event.source) == answers:
            return []
        self._decided[event.source] = answers
        fields = {"delegation_id": event.delegation_id, "trigger": event.source}
        return [self._control.timeline.note(now, "decided", "info", **fields, answers=answers)]

    def begin_if_transcribed(self, now: float) -> list[Output]:
        """Begin all waiting tasks now, or refuse those beyond the limit (:meth:`tick`), if no words
        of the caller are still to come, and some have come since this was last called, or all were
        there when a task was delegated. Otherwise each task goes on waiting, ``WORDS_SECONDS`` at
        most. Called after each input."""
        came, self.words_came = self.words_came, False
        if not (self._waiting and came) or self.words_missing():
            return []
        self._waiting = dict.fromkeys(self._waiting, now)
        return self.tick(now)

    def tick(self, now: float) -> list[Output]:
        """Begin the tasks whose time has come: ``WORDS_SECONDS`` after they were delegated, or now
        where :meth:`begin_if_transcribed` has set it so. Beyond ``MAX_PER_MINUTE`` in 60 s one is
        refused instead: log ``tool_loop``, and tell the session ``NOT_POSSIBLE``."""
        due = [task for task, at in self._waiting.items() if now >= at]
        if not due:
            return []
        said = self._control.timeline.record.transcript
        entries = [] if said is None else said.as_json()[-MAX_ENTRIES:]
        lines = [f"{one['who']}: {one['text']}" for one in entries if one["text"]]
        arguments = json.dumps({"conversation": "\n".join(lines)})
        outputs: list[Output] = []
        for task in due:
            del self._waiting[task]
            if len(self._begun) == MAX_PER_MINUTE and now - self._begun[0] < 60:
                fields = {"rounds": MAX_PER_MINUTE}
                outputs.append(self._control.timeline.note(now, "tool_loop", "warning", **fields))
                outputs.append(Send(AppendText("thinking", NOT_POSSIBLE, task)))
                continue
            self._begun.append(now)
            outputs += self._start(self._control.plan.tools.delegate, task, arguments, now)
        return outputs
