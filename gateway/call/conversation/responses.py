# SPDX-License-Identifier: GPL-2.0-or-later
"""Responses of a session: one at a time, each under one name, and how long the caller waits; and
ids of function calls, unique in all sessions of a call.

The server refuses a second response in the default conversation
(``conversation_already_has_active_response``), and starts some by itself when a caller's turn ends
(``input_audio_buffer.committed``), so a request of ours may lose that race; it is then sent again
after ``response.done``.

Which response answers which request the server says by the request's ``event_id`` in the metadata
of the response, and never the order in which they come: a caller's turn may begin one of the
server's own between a request and its answer.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gateway.call.call_record import MAX_KEPT, CallTimeline, ResponseTime
from gateway.call.inputs import CallerHeard
from gateway.call.outputs import Output, Send
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    UNNAMED,
    AgentTranscript,
    AgentTranscriptDelta,
    AppendText,
    AudioDelta,
    AudioDone,
    CreateItem,
    CreateResponse,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    WorkDelegated,
)

MAX_WAITING = 8
"""Requests kept while a response runs. Each stands for something the caller did; of more than
these the oldest is dropped and counted."""

UNANSWERED_SECONDS = 10.0
"""A request that brings neither ``response.created`` nor an error within this is given up."""

MAX_RUNNING = 8
"""Responses that run at a time, and turns that wait for one; a server has one, as a rule, and one
that never tells of an end must not fill the memory."""

MAX_REMEMBERED = 64
"""Responses of which the request, the name and the end are remembered; a repetition of an event
follows soon, or never."""

MAX_ENDPOINTING_SECONDS = 10.0
"""What was loud longer before the end of a turn did not belong to it: the turn was too quiet."""


class ResponseTimes:
    """Measures how long the caller waits for each response, and how fast an interruption takes
    effect.

    A wait begins with ``speech_stopped`` (with ``input_audio_buffer.committed`` of a server without
    it) and ends with the first frame of model audio handed to RTP; ``speech_started`` before that
    cancels it, and so does the decision that the turn was a false interruption. Times are of the
    machine's clock (s).
    """

    def __init__(self, timeline: CallTimeline) -> None:
        self._timeline = timeline
        self._heard = CallerHeard(None, None)
        self._over: float | None = None
        """When the server said that the turn is over; None while nobody waits."""
        self._first: float | None = None
        """When the first audio after that came."""
        self._stops_told = False
        """The server sends ``speech_stopped``: a commit says nothing new."""
        self.paused_at: float | None = None
        """Since when playout is paused because the caller may be interrupting (s)."""

    def on_caller_heard(self, input: CallerHeard) -> list[Output]:
        """Keep when the caller's audio was last loud, and the round trips: waits and interruptions
        are measured from there, not from the server's later events. Returns no output."""
        self._heard = input
        return []

    def on_speech_started(self) -> None:
        """Cancel the wait, since the caller speaks (``speech_started``); nothing is recorded."""
        self._over = self._first = None

    def on_turn_over(self, now: float, *, committed: bool = False) -> None:
        """Begin a wait anew: the caller's turn is over.

        Args:
            committed: known by ``input_audio_buffer.committed``; ignored where the server has sent
                a ``speech_stopped`` in this call.
        """
        self._stops_told = self._stops_told or not committed
        if not (committed and self._stops_told):
            self._over, self._first = now, None

    def on_false_interruption(self, over: float | None) -> None:
        """Cancel the wait if it began at ``over`` (s), with the end of a turn that is not to be
        answered; that of a later turn goes on."""
        if over is not None and over == self._over:
            self.on_speech_started()

    def on_audio(self, now: float, *, speaking: bool) -> None:
        """Note when the first audio delta of the wait came. Nothing without a wait, and for later
        deltas.

        Args:
            speaking: other model audio was queued before it and is still heard; then the wait is
                cancelled, since nobody waits.
        """
        if self._over is None or self._first is not None:
            return
        self._first = now
        if speaking:
            self.on_speech_started()

    def on_playing(self, now: float) -> None:
        """End the wait at the first frame handed to RTP, and append a :class:`ResponseTime` to the
        record (the first ``MAX_KEPT`` only). Nothing unless a wait has had its first delta.

        It counts from the caller's last loud packet; where that is not known, came after the end of
        the turn, or ``MAX_ENDPOINTING_SECONDS`` or more before it, from the end of the turn.
        """
        if self._over is None or self._first is None:
            return
        over, first, heard = self._over, self._first, self._heard
        self.on_speech_started()
        known = heard.until is not None and over - MAX_ENDPOINTING_SECONDS < heard.until <= over
        spoke = heard.until if known and heard.until is not None else over
        times = self._timeline.record.response_times
        if len(times) < MAX_KEPT:
            ms = [
                1000 * (now - spoke),
                heard.leg_ms + heard.server_ms,
                max(0.0, 1000 * (over - spoke) - heard.server_ms),
                1000 * (first - over),
                1000 * max(0.0, now - first),
            ]
            at_ms = round(self._timeline.ms(now), 1)
            times.append(ResponseTime(at_ms, *(round(one, 1) for one in ms)))

    def interrupted_after(self, now: float) -> float | None:
        """Return the ms from the first loud packet of the caller's latest loud stretch until the
        caller heard nothing more of the agent: until ``now``, or until playout was paused before.
        None where no packet was loud yet."""
        since, now = self._heard.since, self.paused_at or now
        return None if since is None else round(max(0.0, 1000 * (now - since)), 1)


class ResponseQueue:
    """Requests for responses (``response.create``), sent one at a time, and the responses that run.

    A request waits while a response runs or another request is unanswered. Nothing is sent here:
    methods that return a request return the one that the caller of the method is to send now, or
    None.
    """

    def __init__(self) -> None:
        self.given_up = 0
        """Requests of this call that the server did not answer in time."""
        self.unanswered: CreateResponse | None = None
        """The last of them; None where none was sent, as the queue waited for a response that was
        never seen."""
        self.dropped = 0
        """Requests of this call that were dropped because too many waited."""
        self.reset()

    def reset(self) -> None:
        """Forget all responses, running or ended, and all requests, sent or waiting, since their
        session is over. ``given_up`` and ``dropped`` go on counting for the call."""
        self._running: list[str] = []
        self._requests: BoundedDict[str, CreateResponse | None] = BoundedDict(MAX_REMEMBERED)
        self._waiting: deque[CreateResponse] = deque()
        self._sent: CreateResponse | None = None
        self._sent_at = 0.0
        self.presumed: CreateResponse | None = None
        """Our request that was unanswered when the latest response came, which names none: it is
        taken for the answer, by guess, or the request is expected to be refused; else None."""
        self._server_names_requests = False
        """This session has said which request a response answers."""
        self._turns = 0
        """Turns of the caller to which a response of the server's own may still come."""

    @property
    def active(self) -> str | None:
        """Id of the latest response that runs (``response.created`` without ``response.done``);
        None without one."""
        return self._running[-1] if self._running else None

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of all responses that run, oldest first; more than one where the server allows it.
        The latest ``MAX_RUNNING`` only."""
        return tuple(self._running)

    def request_of(self, response_id: str) -> CreateResponse | None:
        """Return our request that this response answers, by the server's word or by guess; None
        where the server began the response by itself, and for a response that is not remembered
        (``MAX_REMEMBERED``)."""
        return self._requests.get(response_id)

    def answers_turn(self, response_id: str) -> bool:
        """Return whether this response answers what was said: the server began it, or our request
        had no instructions or other settings of its own. True for a response that is not
        remembered."""
        asked = self.request_of(response_id)
        return asked is None or asked.response is None

    @property
    def answering(self) -> bool:
        """Whether a response to what was said (:meth:`answers_turn`) runs, or a request for one was
        sent or waits."""
        return self.answer_requested or any(self.answers_turn(one) for one in self._running)

    @property
    def answer_requested(self) -> bool:
        """Whether a request without settings of its own is unanswered, or waits."""
        asked = [self._sent] if self._sent is not None else []
        return any(one.response is None for one in (*asked, *self._waiting))

    @property
    def deadline(self) -> float | None:
        """When :meth:`on_unanswered` is due (s): ``UNANSWERED_SECONDS`` after the last request was
        sent or refused for a collision, or the last response ended. None while a response runs, and
        without a request that is unanswered or waits."""
        if self._running or not (self._sent or self._waiting):
            return None
        return self._sent_at + UNANSWERED_SECONDS

    @property
    def idle(self) -> bool:
        """Whether no response runs, no request is unanswered, and none waits."""
        return not (self._running or self._sent or self._waiting)

    def is_open(self, create: CreateResponse) -> bool:
        """Return whether this request is unanswered or waits, or its response runs."""
        asked = [self._sent, *self._waiting, *map(self.request_of, self._running)]
        return any(one is create for one in asked)

    def request(self, create: CreateResponse, now: float) -> CreateResponse | None:
        """Request a response: return the request where it is to be sent now, before any that wait,
        as no response runs and no request is unanswered; None where it waits, or is dropped.

        A request without settings of its own answers everything said before it is sent, so a second
        one of that kind is dropped, uncounted, while one waits. Above ``MAX_WAITING`` the oldest
        waiting one is dropped and counted (``dropped``).
        """
        if not self._running and self._sent is None:
            self._sent, self._sent_at = create, now
            return create
        if create.response is None and any(one.response is None for one in self._waiting):
            return None
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(create)
        return None

    def forget_waiting(self) -> None:
        """Drop all requests that wait, uncounted; the sent one and the running responses stay."""
        self._waiting.clear()

    def forget_answers(self) -> None:
        """Drop the waiting requests without settings of their own, which would answer the caller;
        uncounted."""
        self._waiting = deque(one for one in self._waiting if one.response is not None)

    def on_turn(self) -> None:
        """Count a turn of the caller that the server will answer by itself
        (``input_audio_buffer.committed``): where the server does not name requests, its next
        response is not taken for the answer to ours."""
        self._turns = min(self._turns + 1, MAX_RUNNING)

    def on_created(
        self, response_id: str, request: CreateResponse | None = None
    ) -> CreateResponse | None:
        """Handle ``response.created``: the response runs from now on; above ``MAX_RUNNING`` the
        oldest is forgotten. Return our request that it answers; None for a response that the server
        began by itself.

        Where the server has named no request in this session, a request that was sent is no longer
        unanswered, whatever the response: either the response is the answer, by guess, or, where
        a turn of the caller waits for one (:meth:`on_turn`), our request is expected to be refused
        for a collision.

        Args:
            request: our request, where the response's metadata names it.
        """
        self.presumed = None
        if request is not None:
            self._server_names_requests = True
        elif self._sent is not None and not self._server_names_requests:
            request = None if self._turns else self._sent
            self.presumed, self._sent = self._sent, None  # only one runs at a time
        if request is None:
            self._turns = max(0, self._turns - 1)
        elif request is self._sent:
            self._sent = None
        self._running = [*self._running, response_id][-MAX_RUNNING:]
        self._requests[response_id] = request
        return request

    def on_done(self, response_id: str, now: float) -> CreateResponse | None:
        """Handle ``response.done``: the response, if it ran, runs no more. Whether it ran or not,
        return the oldest waiting request, to be sent now; None where none waits, another response
        runs, or a request is unanswered."""
        if response_id in self._running:
            self._running.remove(response_id)
            self._sent_at = now
        return self._next_to_send(now)

    def on_collision(self, create: CreateResponse | None, now: float) -> CreateResponse | None:
        """Put a request that the server refused (``conversation_already_has_active_response``) at
        the front of the queue, unless it waits already. It is sent once the running response is
        done, or at :attr:`deadline`. A response that was taken for its answer counts as the
        server's own. Return the refused request; None where none is known.

        Args:
            create: the refused request; None where the error does not name it: then the sent one,
                or the one that was unanswered when the latest response came without naming any.
        """
        create = create or self._sent or self.presumed
        self.presumed = None
        for response_id in [name for name, one in self._requests.items() if one is create]:
            self._requests[response_id] = None  # it was no answer to this
        if create is None or any(one is create for one in self._waiting):
            return create
        if create is self._sent:
            self._sent = None
        self._sent_at = now
        self._waiting.appendleft(create)
        return create

    def resend_after_dropped(self, now: float) -> None:
        """Queue our request again that was unanswered when the latest response came, if that names
        no request: it may be the answer, or have taken its place. Called when that response is
        being dropped. The request goes first once that response is done. Nothing for a request
        without settings of its own."""
        if self.presumed is not None and self.presumed.response is not None:
            self.on_collision(self.presumed, now)

    def on_refused(
        self, create: CreateResponse, now: float, instead: CreateResponse | None = None
    ) -> CreateResponse | None:
        """Handle the server's error about a request, which is forgotten if it was the sent one.
        Return the request to send now: ``instead``, if it is given and ``create`` was the sent one;
        else the oldest waiting request, or None where none waits or that has to wait on."""
        if create is self._sent:
            self._sent = instead
            if instead is not None:
                self._sent_at = now
                return instead
        return self._next_to_send(now)

    def forget_running(self) -> CreateResponse | None:
        """Forget the running responses and the sent request, as the caller has heard nothing for
        too long and the session stays; requests that wait stay. Return the request to repeat: the
        sent one, else that of the latest running response; None where the server began that
        response, and where there is neither."""
        asked = self._sent or (self.request_of(self._running[-1]) if self._running else None)
        self._running, self._sent = [], None
        return asked

    def on_unanswered(self, now: float) -> CreateResponse | None:
        """Act on :attr:`deadline`: give up the sent request; return the oldest waiting one, to be
        sent now, or None. ``given_up`` grows by one, also where none was sent and the queue waited
        for a response that was never seen."""
        self.given_up += 1
        self.unanswered, self._sent = self._sent, None
        return self._next_to_send(now)

    def _next_to_send(self, now: float) -> CreateResponse | None:
        """Mark the oldest waiting request as sent at ``now`` and return it; None where a response
        runs, a request is unanswered, or none waits."""
        if self._running or self._sent is not None or not self._waiting:
            return None
        self._sent, self._sent_at = self._waiting.popleft(), now
        return self._sent


class ResponseNames:
    """Gives each response of a session one name, whatever its server makes of their ids.

    Servers leave ids out, use one again for the next response, and say twice that a response begins
    or ends, or that it begins after it has ended. With :meth:`complete` everything else sees a
    response under one name (``UNNAMED`` and a number, where its id is missing or used again), from
    one beginning to one end. A repetition becomes an :class:`OtherEvent` that nothing acts on.

    Args:
        was_interrupted: returns whether the response with this id was interrupted or dropped.
    """

    def __init__(self, responses: ResponseQueue, was_interrupted: Callable[[str], bool]) -> None:
        self._responses = responses
        self._was_interrupted = was_interrupted
        self._made = 0
        """How many names of ours were given."""
        self._nameless = ""
        """Our name of the latest response without an id, until an id is known; else ""."""
        self._begun: BoundedDict[str, None] = BoundedDict(MAX_REMEMBERED)
        """Ids whose latest response was created."""
        self._over: BoundedDict[str, None] = BoundedDict(MAX_REMEMBERED)
        """Ids whose latest response is done."""
        self._ours: BoundedDict[str, str] = BoundedDict(MAX_REMEMBERED)
        """Our name of the latest response with an id that an earlier one had, too, or that
        ``response.created`` left out, by that id."""

    def complete(self, event: ServerEvent) -> ServerEvent:
        """Return the event with the response and item ids that hold in this gateway. To be called
        once for each event, in order: a second call takes a beginning or an end for a repetition.

        A ``response.created`` without an id, or with the id of a response that has begun and ended,
        gets a new name, which its audio, transcript and ``response.done`` then get, too. A second
        ``response.created`` of a response that runs becomes an ``OtherEvent``, and so does a second
        ``response.done``; both are known by the id, so not where it is missing. An audio or
        transcript event without a response id belongs to the latest running response, one without
        an item id to an item ``item_of_`` and the response's name. Other events are returned as
        they are.
        """
        match event:
            case AudioDelta() | AudioDone() | AgentTranscriptDelta() | AgentTranscript():
                response_id = self._resolve_name(event.response_id)
                if response_id == event.response_id and event.item_id:
                    return event
                return replace(
                    event,
                    response_id=response_id,
                    item_id=event.item_id or f"item_of_{response_id}",
                )
            case ResponseCreated():
                return self._complete_created(event)
            case ResponseDone():
                return self._complete_done(event)
        return event

    def is_over(self, response_id: str) -> bool:
        """Return whether this response has ended, that is, its ``response.done`` came before its
        ``response.created``; asked at the latter."""
        return response_id in self._over

    def reset(self) -> None:
        """Forget the ids of a session that another one replaces. The numbers of our names go on, so
        that no name is used again in this call."""
        self._begun.clear()
        self._over.clear()
        self._ours.clear()

    def _complete_created(self, event: ResponseCreated) -> ServerEvent:
        """Return ``response.created``: as it is, or under a new name of ours where it has no id or
        that of a response that has begun and ended. A repetition while that one runs becomes an
        ``OtherEvent``."""
        response_id = event.response_id
        if not response_id:
            self._nameless = self._new_name()
            return replace(event, response_id=self._nameless)
        begun, over = response_id in self._begun, response_id in self._over
        if begun and not over:
            return OtherEvent("response.created", {})
        self._begun[response_id] = None
        if not begun:
            return event
        self._over.pop(response_id)
        name = self._new_name()
        self._ours[response_id] = name
        return replace(event, response_id=name)

    def _complete_done(self, event: ResponseDone) -> ServerEvent:
        """Return ``response.done`` under the name that the response has here, and remember its end;
        a second one of the same response becomes an ``OtherEvent``.

        That of a Live session's backend, of a response that was never created, stays as it is.
        """
        response_id = event.response_id
        if event.backend and response_id not in self._begun:
            return event  # of no response that is heard
        if response_id in self._over:
            return OtherEvent("response.done", {})
        name = self._resolve_name(response_id)
        known = (one for one, ours in self._ours.items() if ours == name)
        self._over[response_id or next(known, name)] = None
        return event if name == response_id else replace(event, response_id=name)

    def _resolve_name(self, response_id: str) -> str:
        """Return the name here of the response with this id; where the id is empty, of the latest
        running one, or ``UNNAMED`` without any.

        While the latest response was created without an id, the first unknown id that comes is
        taken for its own, unless it is that of an interrupted response; the name stays ours.
        """
        active = self._responses.active
        if not response_id:
            return active or UNNAMED
        name = self._ours.get(response_id, response_id)
        if active is None or active != self._nameless or response_id in self._begun:
            return name
        if self._was_interrupted(response_id):
            return name
        # A response that was created without an id has one after all.
        self._begun[response_id] = None
        self._ours[response_id] = active
        self._nameless = ""
        return active

    def _new_name(self) -> str:
        """Return a name that no server gives: ``UNNAMED`` and a number."""
        self._made += 1
        return f"{UNNAMED}{self._made}"


_OURS = re.compile("^s[0-9]+_")
"""What ids begin with that :class:`CallIds` has made."""


class CallIds:
    """Makes the ids of what outlives its session unique in a telephone call: function calls,
    delegated tasks, requests for approval. Servers may use an id again in each session, while a
    function of a lost one still runs.

    Those of the first session stay as they are, those of the next begin with ``s1_``, and so on. A
    session gets its own ids back; calls of earlier sessions have the ids that its seed gave them
    (:meth:`seeded`).

    Args:
        as_given: seeds have calls under the ids that their sessions gave them, since an application
            answers some, under those that it saw.
    """

    def __init__(self, *, as_given: bool) -> None:
        self._as_given = as_given
        self._sessions_over = 0

    def on_session_over(self) -> None:
        """Count the end of a session: what comes from now on is of the next one."""
        self._sessions_over += 1

    def complete(self, event: ServerEvent) -> ServerEvent:
        """Return the event with unique ids of its function calls or its delegated task; other
        events as they are."""
        if not self._sessions_over:
            return event
        match event:
            case ResponseDone(output=output) if output:
                return replace(event, output=tuple(self._complete_item(item) for item in output))
            case WorkDelegated(id=task, target="client"):
                return replace(event, id=self.unique(task))
        return event

    def unique(self, given: str) -> str:
        """Return the unique id for one that the present session has given; "" for ""."""
        return self._own + given if given else ""

    def seeded(self, call_id: str) -> str:
        """Return the id of a function call in the seed of the next session, which may use the
        call's own id for another one. Made of letters, digits and ``_``, and of 32 characters at
        most, as servers limit both."""
        return _OURS.sub("", call_id) if self._as_given else f"past_{call_id[-27:]}"

    def sent(self, outputs: list[Output]) -> list[Output]:
        """Return the outputs with the ids that the present session knows in results of functions
        and answers to tasks. An answer to a task of an earlier session names none."""
        return [self._sent(one) for one in outputs] if self._sessions_over else outputs

    @property
    def _own(self) -> str:
        """What the ids of the present session begin with; "" for the first."""
        return f"s{self._sessions_over}_" if self._sessions_over else ""

    def _complete_item(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a function call with a unique id; other items as they are."""
        if item.get("type") != "function_call":
            return item
        return {**item, "call_id": self.unique(str(item.get("call_id", "")))}

    def _sent(self, output: Output) -> Output:
        """Return one output as :meth:`sent` does."""
        if type(output) is not Send or output.seed:
            return output
        match output.command:
            case CreateItem(item) if item.get("type") == "function_call_output":
                call_id = str(item["call_id"])
                own = call_id.startswith(self._own)
                known = call_id.removeprefix(self._own) if own else self.seeded(call_id)
                return Send(replace(output.command, item={**item, "call_id": known}))
            case AppendText(delegation_id=str(task)):
                own = task.startswith(self._own)
                known_task = task.removeprefix(self._own) if own else None
                return Send(replace(output.command, delegation_id=known_task))
        return output
