# SPDX-License-Identifier: GPL-2.0-or-later
"""Driver of one call's state machine: its inputs, outputs and deadlines; and its tool calls.

Callbacks from outside of the call (legs, sessions, media, timers, tools) are methods decorated with
:func:`entry`. Their exceptions go to ``on_fault``, which ends the call and writes its record.
"""

from __future__ import annotations

import asyncio
import audioop
import functools
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from gateway.audio.codecs import Codec
from gateway.call import inputs, outputs
from gateway.call.call_record import CallRecord
from gateway.call.machine import CallMachine, MachineInput
from gateway.call.plan import GuardrailPlan
from gateway.call.session_lifecycle import State
from gateway.call.tools.commands import CollectPlan, CommandsFromTools
from gateway.call.tools.definitions import entry_problem
from gateway.call.tools.function_calls import MAX_NAME
from gateway.measures import traceparent
from gateway.realtime.events import AudioDelta
from gateway.tools.functions import Question, ToolCall, ToolRunner


class HasFaults(Protocol):
    """Owner of methods with :func:`entry`."""

    def on_fault(self, error: Exception) -> None:
        """End the call after an internal error. Never raises."""


@dataclass(frozen=True, slots=True)
class CallHost:
    """What the objects of one call share: its record, inputs of its machine, its clock."""

    record: CallRecord
    feed: Callable[[MachineInput], None]
    """Feeds an input to the machine."""
    feed_audio: Callable[[AudioDelta], None]
    """Feeds an audio delta of the session to the machine."""
    now_ms: Callable[[], float]
    """Milliseconds since the call began."""
    on_fault: Callable[[Exception], None]
    """Ends the call after an internal error."""
    is_over: Callable[[], bool] = lambda: False
    """Whether the call has ended and its record is complete."""
    heard: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    """Returns when the caller's present speech began, and when they were last loud (loop's s)."""


class CallPart:
    """Base of what belongs to one call: an exception of an :func:`entry` ends the call."""

    def __init__(self, host: CallHost) -> None:
        self._host = host
        self.on_fault = host.on_fault


_P = ParamSpec("_P")
_Self = TypeVar("_Self", bound=HasFaults)


def entry(
    method: Callable[Concatenate[_Self, _P], None],
) -> Callable[Concatenate[_Self, _P], None]:
    """Decorate a method so that its exceptions go to ``on_fault`` of its object."""

    @functools.wraps(method)
    def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.on_fault(error)

    return run


def entry_task(
    method: Callable[Concatenate[_Self, _P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, None]]:
    """Decorate a coroutine method so that its exceptions go to ``on_fault`` of its object."""

    @functools.wraps(method)
    async def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            await method(self, *args, **kwargs)
        except Exception as error:
            self.on_fault(error)

    return run


SILENT = 33
"""Amplitude, of 32,768 (-60 dBFS), below which the model's audio is silence."""


TICK_SECONDS = 0.005
"""Least time between two ticks, so that a deadline in the past does not take all of the CPU."""


class MachineDriver:
    """Feeds inputs to ``machine`` and executes its outputs by their type, on the event loop.

    An input that comes while outputs are executed waits until all of them are.

    Args:
        on_fault: ends the call after an exception.
        put: queues frames for playout; returns the number of frames that did not fit.
        codec: of the session's audio.
    """

    def __init__(
        self,
        machine: CallMachine,
        on_fault: Callable[[Exception], None],
        put: Callable[[bytes], int],
        codec: Codec,
    ) -> None:
        self.machine = machine
        self._put = put
        self._silence = None if codec.wide else codec.quieter_than(SILENT)
        """Bytes of silence; None where audio is linear samples."""
        self.executors: dict[type, Callable[[Any], None]] = {}
        self.started = False
        self.over = False
        self.on_fault = on_fault
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[tuple[MachineInput, float]] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._not_before = 0.0
        """When the next tick may be (s)."""

    def start(self) -> None:
        """Start the machine and execute its first outputs. Raises what they raise."""
        self._busy = True
        try:
            self._execute(self.machine.start(self._loop.time()))
            self.started = True
        finally:
            self._busy = False
        self.work()
        if not self.over:
            self._schedule()

    @entry
    def feed(self, input: MachineInput, at: float | None = None) -> None:
        """Queue and handle an input that happened now, or at a time ``at`` of the event loop
        (s)."""
        if self.over:
            return  # a function, say, that outlives its call
        self._inbox.append((input, self._loop.time() if at is None else at))
        self._work()

    def feed_audio(self, delta: AudioDelta) -> None:
        """Feed an audio delta of the session, up to fifty times a second: its frames go straight to
        playout where the machine has nothing to decide."""
        if self._silence is None:
            delta.silent = audioop.max(delta.audio[: len(delta.audio) & ~1], 2) < SILENT
        else:
            delta.silent = not delta.audio.strip(self._silence)
        waits = self._busy or self._inbox or self.over
        frames = None if waits else self.machine.more_audio(delta)
        if frames is None:
            self.feed(inputs.ServerEventReceived(delta))
        elif frames and (refused := self._put(frames)):
            self.feed(inputs.PlayoutRefused(refused))

    def feed_first(self, input: MachineInput) -> None:
        """Queue an input before all others, to be handled by :meth:`work`."""
        if not self.over:
            self._inbox.appendleft((input, self._loop.time()))

    @entry
    def work(self) -> None:
        """Let the machine handle the queued inputs now, and execute what it returns."""
        self._work()

    def _work(self) -> None:
        """Handle the queued inputs and set the timer; nothing, if called by an output of them."""
        if self._busy or self.over:
            return
        self._busy = True
        moved = False
        try:
            while self._inbox:
                input, at = self._inbox.popleft()
                self._execute(self.machine.handle(input, at))
                moved = moved or _moves_deadline(input)
        finally:
            self._busy = False
        if moved and not self.over:
            self._schedule()

    def may_end_call(self) -> bool:
        """Return whether the machine has started and has not finished, so that it can end the
        call."""
        return self.started and not self.over and self.machine.state is not State.FINISHED

    def stop(self) -> None:
        """Drop the queued inputs and take no more."""
        self.over = True
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _execute(self, todo: list[outputs.Output]) -> None:
        for output in todo:
            self.executors[type(output)](output)

    def _schedule(self) -> None:
        """Set the timer to the machine's deadline."""
        at = self.machine.deadline
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None
        if at is not None:
            self._timer = self._loop.call_at(max(at, self._not_before), self._tick)

    @entry
    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self._not_before = self._loop.time() + TICK_SECONDS
        self.feed(inputs.Tick())


def _moves_deadline(input: MachineInput) -> bool:
    """Return whether an input may make the machine's deadline earlier.

    Queued audio does not. RTP packets make it later; the tick at the old time does nothing.
    """
    if type(input) is inputs.ServerEventReceived:
        return type(input.event) is not AudioDelta
    return type(input) is not inputs.RtpStats


_COLLECTS_NOTHING = CollectPlan()


@dataclass(eq=False)
class ToolCalls:
    """Has tool calls, approvals and content checks run by ``runner``, and feeds the results.

    Args:
        runner: None where nothing runs functions: each fails.
        guardrails: of the route; :class:`outputs.CheckContent` counts them from 0.
        collect: where sensitive digits are sent.
        variables: returns the call's variables at present.
    """

    host: CallHost
    runner: ToolRunner | None
    guardrails: Sequence[GuardrailPlan]
    variables: Callable[[], Mapping[str, str]]
    collect: CollectPlan = _COLLECTS_NOTHING

    def __post_init__(self) -> None:
        self.executors: dict[type, Callable[[Any], None]] = {
            outputs.RunTool: self._run,
            outputs.RequestApproval: self._ask,
            outputs.CheckContent: self._check,
            outputs.StoreDigits: self._store,
        }

    def _run(self, output: outputs.RunTool) -> None:
        """Run a function; feed its result as :class:`inputs.ToolDone`."""

        def done(text: str) -> None:
            self.host.feed(inputs.ToolDone(output.call_id, text))

        if self.runner is None:
            done('{"error": "nothing runs this function"}')
        else:
            part = f"tool {output.call_id[:MAX_NAME]}"
            call = self._call(output.call_id, output.name, output.arguments, part)
            self.runner.run(call, done)

    def _ask(self, output: outputs.RequestApproval) -> None:
        """Ask for an approval; feed it as :class:`inputs.ApprovalResult`."""

        def done(approve: bool, reason: str) -> None:
            self.host.feed(inputs.ApprovalResult(output.key, approve, reason))

        if self.runner is None:
            done(False, "nobody can be asked")
        else:
            call = self._call(output.key, output.name, output.arguments)
            self.runner.ask(Question(call, output.rule), done)

    def _check(self, output: outputs.CheckContent) -> None:
        """Have a guardrail check text; feed the verdict as :class:`inputs.ContentChecked`."""

        def done(allow: bool | None, reason: str) -> None:
            self.host.feed(inputs.ContentChecked(output.key, allow, reason))

        if self.runner is None:
            done(None, "nobody can be asked")
        else:
            call = self._call(output.key, output.who, output.text)
            self.runner.check(self.guardrails[output.rule], call, done)

    def _store(self, output: outputs.StoreDigits) -> None:
        """Validate sensitive digits and pass them on; feed :class:`inputs.DigitsStored`."""

        def done(result: Mapping[str, Any]) -> None:
            self.host.feed(inputs.DigitsStored(result))

        today = date.today()
        problem = entry_problem(output.kind, output.digits, today.year, today.month)
        if problem:
            done({"status": "invalid", "reason": problem})
        elif self.runner is None:
            done({"status": "failed", "reason": "nothing takes the digits"})
        else:
            call = self._call("", output.kind, "")
            self.runner.store(self.collect, call, output.digits, done)

    def _call(self, call_id: str, name: str, arguments: str, part: str = "") -> ToolCall:
        record = self.host.record
        return ToolCall(
            call_id,
            name,
            arguments,
            call=record.call_id,
            route=record.route,
            caller=record.from_uri,
            called=record.to_uri,
            variables=self.variables(),
            traceparent=traceparent(record.trace_id, part),
            control=CommandsFromTools(lambda command: self.host.feed(inputs.ToolRequest(command))),
        )
