# SPDX-License-Identifier: GPL-2.0-or-later
"""Delegation of a Live session: tasks for a scripted backend, or for the client.

The backend is no model: its calls are those of the script's answers, and what it says follows the
emulator's rules. Its events are those of a Responses stream, each in a ``response.event``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.devtools.emulator.dialogue import Turn
from gateway.devtools.emulator.live_audio import LiveHost
from gateway.devtools.emulator.live_events import FunctionOutput, backend_item, check_decision_item
from gateway.devtools.emulator.objects import Json, ProtocolError, new_id, split_at_spaces
from gateway.devtools.emulator.response import Content
from gateway.devtools.emulator.script import Answer

ONE_MOMENT = "One moment, please."
_TOKENS_PER_ITEM = 50


class Delegations:
    """Delegations and decisions of one session."""

    def __init__(self, session: LiveHost) -> None:
        self._session = session
        self._known: set[str] = set()
        self._open_calls: dict[str, str] = {}
        """Names of the functions whose results are wanted, by call id."""
        self._outputs: list[str] = []
        self._texts: list[str] = []
        self.delegation_id: str | None = None
        self._items = 0
        self._hushed = 0
        self._decided: set[str] = set()
        self._decision_items: dict[str, Json] = {}

    @property
    def type(self) -> str:
        """``client``, ``responses`` or ``decisions``."""
        return str(self._session.settings["delegation"]["type"])

    def functions(self) -> Sequence[Mapping[str, Any]]:
        backend = self._session.settings["delegation"].get("responses") or {}
        return [tool for tool in backend.get("tools") or [] if tool["type"] == "function"]

    # Towards the work

    def create(self, calls: Sequence[tuple[str, str]], answer: Answer, *, spoken: bool) -> None:
        """Send ``session.delegation.created``, and let the backend begin where it has the task.

        Args:
            calls: functions that the backend asks for, with arguments.
            answer: outcome of the backend's response.
            spoken: whether the voice has spoken, so that no acknowledgement is added.
        """
        session, type_ = self._session, self.type
        delegation: Json = {"id": new_id("dlg"), "type": "delegation", "target": type_}
        response_id = new_id("resp")
        if type_ == "responses":
            delegation["response_id"] = response_id
        self._known.add(delegation["id"])
        session.emit(
            {
                "type": "session.delegation.created",
                "delegation": delegation,
                "offset_ms": session.position_ms,
            }
        )
        if not spoken:
            self._acknowledge()
        if type_ == "responses":
            self.delegation_id = delegation["id"]
            self._respond(response_id, calls, None, answer)
        elif type_ == "decisions":
            self.answer_questions(self._questions(), delegation_id=delegation["id"])

    def _acknowledge(self) -> None:
        settings = self._session.settings["delegation"]
        delay = settings.get("acknowledgement_delay_ms")
        if delay is None:
            delay = 400 if self.type == "decisions" else 0
        number = self._hushed

        def speak() -> None:
            if number == self._hushed and not self._session.speaking:
                self._session.speak_text(ONE_MOMENT)

        self._session.at(delay, speak)

    def hush(self) -> None:
        """Drop acknowledgements that wait, as commentary or thinking came."""
        self._hushed += 1

    def check_reply(self, delegation_id: str | None) -> None:
        """Check that a text may name this delegation. Raises :class:`ProtocolError`."""
        if delegation_id is None:
            return
        if self.type != "client":
            text = "'delegation_id' is not accepted with Responses delegation."
            raise ProtocolError("invalid_request_error", text, "delegation_id")
        if delegation_id not in self._known:
            text = f"Delegation '{delegation_id[:100]}' does not exist."
            raise ProtocolError("invalid_request_error", text, "delegation_id")

    # The backend

    def _backend_only(self, what: str) -> None:
        if self.type != "responses":
            text = f"'{what}' requires Responses delegation."
            raise ProtocolError("invalid_request_error", text, "type")

    def add_item(self, item: Json) -> None:
        """``response.item.create``."""
        self._backend_only("response.item.create")
        given = backend_item(item)
        if isinstance(given, FunctionOutput):
            if self._open_calls.pop(given.call_id, None) is None:
                text = f"No tool call found for call_id {given.call_id[:100]}."
                raise ProtocolError("invalid_request_error", text, "item.call_id")
            self._outputs.append(given.text)
        elif given is not None:
            self._texts.append(given.text)
        self._items += 1

    def proceed(self) -> None:
        """``response.create``: the backend goes on with what it was given."""
        self._backend_only("response.create")
        if self._open_calls:
            missing = next(iter(self._open_calls))
            text = f"No tool output found for function call {missing}."
            raise ProtocolError("invalid_request_error", text, "input")
        turn = Turn(texts=self._texts, outputs=self._outputs)
        if not self._outputs:
            self.delegation_id = None  # Work of the client's own, which nobody delegated.
        self._texts, self._outputs = [], []
        answer = self._session.next_answer()
        if answer.kind in ("silent", "hang"):
            return

        def made(content: Content) -> None:
            self._respond(new_id("resp"), content.calls, content, answer)

        self._session.make(answer, turn, made)

    def _respond(
        self,
        response_id: str,
        calls: Sequence[tuple[str, str]],
        content: Content | None,
        answer: Answer,
    ) -> None:
        """Send a response of the backend; what it says is spoken by the voice."""
        session = self._session
        stream = _Stream(session, response_id, self.delegation_id)
        stream.send("response.created", response=stream.snapshot("in_progress"))
        stream.send("response.in_progress", response=stream.snapshot("in_progress"))

        def finish() -> None:
            if answer.outcome != "completed":
                stream.fail(answer)
                return
            if content is not None and content.text:
                stream.message(content.text)
            for name, arguments in calls:
                call_id = new_id("call")
                self._open_calls[call_id] = name
                stream.call(call_id, name, arguments)
            used = _TOKENS_PER_ITEM * (1 + self._items)
            stream.send("response.completed", response=stream.snapshot("completed", used))
            if content is not None and content.audio and stream.delegation_id is not None:
                self.hush()
                session.say_content(content, answer)

        if session.script.live.backend_delay_ms:
            session.at(session.script.live.backend_delay_ms, finish)
        else:
            finish()

    # Decisions

    def decide(self, event_id: str) -> None:
        """``decision.create``."""
        if self.type != "decisions":
            text = "'decision.create' requires Decisions delegation."
            raise ProtocolError("invalid_request_error", text, "type")
        if event_id in self._decided:
            raise ProtocolError("invalid_value", "'event_id' was used before.", "event_id")
        self._decided.add(event_id)
        self.answer_questions(self._questions(), delegation_id=None)

    def add_decision_item(self, item: Json) -> None:
        """``decision.item.create``."""
        check_decision_item(item)
        kept = {**item, "id": item.get("id") or new_id("ditem")}
        self._decision_items[kept["id"]] = kept
        self._session.acknowledge("decision.item.created", item=kept)

    def delete_decision_item(self, item_id: str) -> None:
        """``decision.item.delete``."""
        if self._decision_items.pop(item_id, None) is None:
            raise ProtocolError("item_not_found", f"No item '{item_id[:100]}'.", "item_id")
        self._session.acknowledge("decision.item.deleted", item_id=item_id)

    def _questions(self) -> list[Json]:
        return list(self._session.settings["delegation"]["decisions"]["questions"])

    def fragment_sent(self, event: Json) -> None:
        """Run the trigger for a transcript fragment that was sent, where there is one."""
        for trigger in self._session.settings["triggers"]:
            if trigger["event_type"] == event["type"]:
                self.answer_questions(
                    trigger["decisions"]["questions"],
                    delegation_id=None,
                    trigger_id=new_id("trig"),
                    source_event_id=event["event_id"],
                    source_event_type=event["type"],
                )

    def answer_questions(self, questions: Sequence[Json], **about: str | None) -> None:
        """Decline every question: nothing here can judge."""
        answers = [{"type": "refusal", "name": question.get("name")} for question in questions]
        decisions = self._session.settings["delegation"].get("decisions") or {}
        model = decisions.get("model", "emulator")
        decision = {"model": model, "answers": answers, "usage": _usage(0, 0)}
        event = {"type": "decision.completed", "decision": decision}
        self._session.emit({"type": "decision.event", "event": event, **about})


def _usage(read: int, written: int) -> Json:
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


class _Stream:
    """The events of one response of the backend, numbered."""

    def __init__(self, session: LiveHost, response_id: str, delegation_id: str | None) -> None:
        self._session = session
        self._id = response_id
        self.delegation_id = delegation_id
        self._number = 0
        self._index = 0
        self._created_at = int(time.time())

    def send(self, type_: str, **fields: Any) -> None:
        event = {"type": type_, "sequence_number": self._number, **fields}
        self._number += 1
        outer: Json = {"type": "response.event", "event": event}
        if self.delegation_id is not None:
            outer["delegation_id"] = self.delegation_id
        self._session.emit(outer)

    def snapshot(self, status: str, used: int = 0) -> Json:
        """Return the response object as Live sends it: no input, instructions, tools, output."""
        backend = self._session.settings["delegation"]["responses"]
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": backend["model"],
            "output": [],
            "parallel_tool_calls": backend.get("parallel_tool_calls", True),
            "temperature": 1.0,
            "tool_choice": backend.get("tool_choice", "auto"),
            "tools": [],
            "top_p": 1.0,
            "usage": _usage(used, max(1, used // 5)) if used else None,
        }

    def fail(self, answer: Answer) -> None:
        """End the response as failed or incomplete, by ``answer.outcome``."""
        body = self.snapshot(answer.outcome)
        if answer.outcome == "failed":
            body["error"] = {"code": answer.error_code, "message": answer.error_message}
            self.send("response.failed", response=body)
            return
        body["incomplete_details"] = {"reason": answer.reason}
        self.send("response.incomplete", response=body)
        self._session.handoff_incomplete()

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Send the events of a function call as an output item."""
        item: Json = {
            "id": new_id("fc"),
            "type": "function_call",
            "call_id": call_id,
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        where = {"item_id": item["id"], "output_index": self._index}
        self.send("response.output_item.added", item=item, output_index=self._index)
        self.send("response.function_call_arguments.delta", delta=arguments, **where)
        self.send("response.function_call_arguments.done", arguments=arguments, **where)
        item = {**item, "arguments": arguments, "status": "completed"}
        self.send("response.output_item.done", item=item, output_index=self._index)
        self._index += 1

    def message(self, text: str) -> None:
        item: Json = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        where = {"item_id": item["id"], "output_index": self._index, "content_index": 0}
        self.send("response.output_item.added", item=item, output_index=self._index)
        part = {"type": "output_text", "text": "", "annotations": []}
        self.send("response.content_part.added", part=part, **where)
        for piece in split_at_spaces(text, 4):
            self.send("response.output_text.delta", delta=piece, logprobs=[], **where)
        self.send("response.output_text.done", text=text, logprobs=[], **where)
        part = {**part, "text": text}
        self.send("response.content_part.done", part=part, **where)
        item = {**item, "status": "completed", "content": [part]}
        self.send("response.output_item.done", item=item, output_index=self._index)
        self._index += 1
