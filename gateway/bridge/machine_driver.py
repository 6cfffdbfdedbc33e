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

from gateway.audio import Codec
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
from gateway.tools import Question, ToolCall, ToolRunner


class HasFaults(Protocol):
    """Object that has methods with :func:`entry` or :func:`entry_task`."""

    def on_fault(self, error: Exception) -> None:
        """End the call after an internal error. Never raises."""


@dataclass(frozen=True, slots=True)
class CallHost:
    """What the objects of one call share: its record, inputs of its machine, its clock."""

    record: CallRecord
    feed: Callable[[MachineInput], None]
    """Feeds an input to the machine, which handles it at once unless it is at work."""
    feed_audio: Callable[[AudioDelta], None]
    """Feeds an audio delta of the active session to the machine."""
    now_ms: Callable[[], float]
    """Milliseconds since the call began."""
    on_fault: Callable[[Exception], None]
    """Ends the call after an internal error."""
    is_over: Callable[[], bool] = lambda: False
    """Whether the call is finished: its record is complete, and inputs are dropped."""
    heard: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    """Returns when the caller's present speech began, and when they were last loud (loop's s)."""


class CallPart:
    """Base of what belongs to one call: an exception in a method with :func:`entry` or
    :func:`entry_task` goes to the host's ``on_fault``, which ends the call."""

    def __init__(self, host: CallHost) -> None:
        self._host = host
        self.on_fault = host.on_fault


_P = ParamSpec("_P")
_Self = TypeVar("_Self", bound=HasFaults)


def entry(
    method: Callable[Concatenate[_Self, _P], None],
) -> Callable[Concatenate[_Self, _P], None]:
    """Decorate a method, which returns None, so that its exceptions go to ``on_fault`` of its
    object and not to its caller."""

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
    """Decorate a coroutine method so that its exceptions go to ``on_fault`` of its object; a
    cancellation is passed on."""

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
    """Feeds inputs to ``machine`` one after another, and executes its outputs on the event loop:
    each by the function that ``executors`` has for its type.

    An input that comes while outputs are executed waits until all of them are. A timer feeds
    :class:`inputs.Tick` at the machine's deadline.

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
        """Machine and first outputs have raised nothing."""
        self.over = False
        """Stopped: no input is taken any more."""
        self.on_fault = on_fault
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[tuple[MachineInput, float]] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._not_before = 0.0
        """When the next tick may be (s)."""

    def start(self) -> None:
        """Start the machine and execute its first outputs; then handle the inputs that came
        meanwhile, and set the timer. Raises what machine or first outputs raise: then it has not
        started."""
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
        """Queue an input that happened now, or at ``at`` (event loop's time, s), and handle all
        that wait; only queue it while outputs are being executed. Dropped after :meth:`stop`."""
        if self.over:
            return  # a function, say, that outlives its call
        self._inbox.append((input, self._loop.time() if at is None else at))
        self._work()

    def feed_audio(self, delta: AudioDelta) -> None:
        """Feed an audio delta of the active session, up to fifty times a second, after setting its
        ``silent`` (no sample from ``SILENT`` up).

        Its frames go straight to playout where no input waits and the machine has nothing to
        decide; those that do not fit are fed as :class:`inputs.PlayoutRefused`. Else the delta is
        fed as :class:`inputs.ServerEventReceived`.
        """
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
        """Put an input before all that wait, to be handled by :meth:`work`, or next if outputs are
        being executed. Dropped after :meth:`stop`."""
        if not self.over:
            self._inbox.appendleft((input, self._loop.time()))

    @entry
    def work(self) -> None:
        """Handle the queued inputs now, and execute what the machine returns. Nothing while outputs
        are being executed, and after :meth:`stop`."""
        self._work()

    def _work(self) -> None:
        """Handle the queued inputs in turn; then set the timer, if one of them may have made the
        deadline earlier. Nothing while outputs are being executed, and after :meth:`stop`.

        An exception of machine or output is raised; the inputs that are left stay queued.
        """
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
        """Take no more inputs: drop those that wait, and cancel the timer."""
        self.over = True
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _execute(self, todo: list[outputs.Output]) -> None:
        """Execute outputs in their order; an exception leaves out those after it."""
        for output in todo:
            self.executors[type(output)](output)

    def _schedule(self) -> None:
        """Set the timer to the machine's deadline, but ``TICK_SECONDS`` after the last tick at the
        earliest; cancel it where there is none. Nothing if the deadline is the same as before."""
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
        """Feed :class:`inputs.Tick`, since the machine's deadline has come."""
        self._timer = self._timer_at = None
        self._not_before = self._loop.time() + TICK_SECONDS
        self.feed(inputs.Tick())


def _moves_deadline(input: MachineInput) -> bool:
    """Return whether an input may make the machine's deadline earlier: any but two.

    Audio deltas do not. RTP packets make it later; the tick at the old time does nothing.
    """
    if type(input) is inputs.ServerEventReceived:
        return type(input.event) is not AudioDelta
    return type(input) is not inputs.RtpStats


_COLLECTS_NOTHING = CollectPlan()


@dataclass(eq=False)
class ToolCalls:
    """Has tool calls, approvals and content checks run by ``runner``, and sensitive digits sent to
    a service; feeds the results. It returns at once, and sets no deadline: the machine has one.

    Args:
        runner: None where nothing runs functions: each fails at once.
        guardrails: of the route; :class:`outputs.CheckContent` counts them from 0.
        collect: where sensitive digits are sent.
        variables: returns the call's variables at present, by name.
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
        """Run a function; feed its result, text for the model, as :class:`inputs.ToolDone`. Without
        a runner that is ``{"error": ...}``."""

        def done(text: str) -> None:
            self.host.feed(inputs.ToolDone(output.call_id, text))

        if self.runner is None:
            done('{"error": "nothing runs this function"}')
        else:
            part = f"tool {output.call_id[:MAX_NAME]}"
            call = self._call(output.call_id, output.name, output.arguments, part)
            self.runner.run(call, done)

    def _ask(self, output: outputs.RequestApproval) -> None:
        """Ask for the approval of a tool call; feed the answer as :class:`inputs.ApprovalResult`.
        Without a runner it is not approved."""

        def done(approve: bool, reason: str) -> None:
            self.host.feed(inputs.ApprovalResult(output.key, approve, reason))

        if self.runner is None:
            done(False, "nobody can be asked")
        else:
            call = self._call(output.key, output.name, output.arguments)
            self.runner.ask(Question(call, output.rule), done)

    def _check(self, output: outputs.CheckContent) -> None:
        """Have the service of a guardrail check text; feed its verdict as
        :class:`inputs.ContentChecked`, None if there is none, as without a runner."""

        def done(allow: bool | None, reason: str) -> None:
            self.host.feed(inputs.ContentChecked(output.key, allow, reason))

        if self.runner is None:
            done(None, "nobody can be asked")
        else:
            call = self._call(output.key, output.who, output.text)
            self.runner.check(self.guardrails[output.rule], call, done)

    def _store(self, output: outputs.StoreDigits) -> None:
        """Validate sensitive digits by their kind, then send them to the route's service; feed the
        result as :class:`inputs.DigitsStored`: the service's, or status ``invalid`` (not sent) or
        ``failed`` (no runner) with the reason."""

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
        """Return a tool call with what a function may know of its call, and ``control``, by which
        it can send commands to the call.

        Args:
            call_id: of the model's function call, or the key of the question.
            part: names the span of the trace that the call is in; "" for the whole call.
        """
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
