# SPDX-License-Identifier: GPL-2.0-or-later
"""Transcript of a call: the words of both sides, in order, and what the caller heard of them.

The server believes that the caller heard all it sent; where playout was stopped, the words are cut
here too. As a rule the server tells no times of the model's words, so where in them a cut lies is
reckoned from the audio that had come with them: to a word or so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, message
from gateway.call.conversation.playout_tracker import Heard
from gateway.call.outputs import Output, Send
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    CreateItem,
    InputCommitted,
    InputTranscribed,
    ItemDeleted,
    ResponseCreated,
    ResponseDone,
    UpdateSession,
)

MAX_ENTRIES = 2000
"""Entries kept of one call; an hour of talk has some hundred. The oldest are dropped, counted."""

MAX_TEXT = 8000
"""Characters kept of one entry; a response of 4,096 tokens has at most twice as many."""

SEED_ENTRIES = 500
SEED_TEXT = 40_000
"""A session that takes over gets at most so much of what was said, the latest: some 10,000 tokens,
of which a realtime model has room for three times as many; an hour's talk has fewer."""

LEFT_OUT = "This conversation goes on from another session; its beginning is left out here."
"""For the model, where it was more."""

_SPEAKERS = {"agent": "You", "caller": "Caller", "call": "Called", "result": "Result"}

_LATEST = 4
"""Entries at the end of a call of which late words are waited for."""

_MARKS = 512
"""Places kept that tie one answer's words to its audio; deltas have one word, as a rule."""


@dataclass(slots=True)
class Entry:
    """Words, a function call or a tool result, and which of the words were heard. ``at_ms`` is in
    ms since the INVITE."""

    at_ms: float
    who: str
    """caller, agent, system, call (of a function) or result; of an interpreted call callee, and
    to_caller and to_callee for what the interpreter said to either."""
    text: str = ""
    item_id: str = ""
    heard: str | None = None
    """The part of the agent's words that the caller heard; None for all. It may be the whole
    ``text``, where only sound was missed, or more was to come."""
    item: Mapping[str, Any] | None = None
    """The item itself, where it is no message."""
    marks: list[tuple[int, int]] = field(default_factory=list)
    """Pairs, ascending: characters of ``text``, and the ms of its audio at which they end."""
    interrupted_at: tuple[int, int] | None = None
    """Ms of its audio that were heard, and that had come, when it was interrupted."""
    part: int = 0
    """``content_index`` of its latest words."""
    part_at: int = 0
    """Characters of ``text`` before that part."""
    complete: bool = False
    """All of its words have come; the server sends no more."""

    def as_json(self) -> dict[str, Any]:
        """Return the entry for the record: ``at_ms``, ``who`` and ``text``; ``heard`` only where
        the caller did not hear all of it, ``item_id`` only where there is one."""
        told: dict[str, Any] = {"at_ms": round(self.at_ms, 1), "who": self.who, "text": self.text}
        if self.heard is not None:
            told["heard"] = self.heard
        if self.item_id:
            told["item_id"] = self.item_id
        return told


class Transcript:
    """Keeps the words of both sides and tool calls, in order, for the record and for sessions that
    take over.

    A rule without a deadline. It registers for what playback reports of parts that were not heard
    to their end.
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        InputCommitted,
        InputTranscribed,
        ResponseCreated,
        AgentTranscriptDelta,
        AgentTranscript,
        ResponseDone,
        ItemDeleted,
    )
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._entries: list[Entry] = []
        self._by_item: dict[str, Entry] = {}
        self._by_past_item: list[dict[str, Entry]] = []
        """The same of sessions that are over, of the latest one first."""
        self._seeded: set[int] = set()
        """``id()`` of the entries that the latest seed had, or left out for want of room."""
        control.timeline.record.transcript = self
        control.playback.on_part_interrupted = self._on_part_interrupted

    # ---- what happens

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take the words, function calls or deletion that a server event has. Returns no output.

        An item gets its entry with its first event: the caller's turn with
        ``input_audio_buffer.committed``, the agent's words with their first delta (where words come
        late, with ``response.created``). Events of the caller without an item id get an entry
        each. Complete words replace the deltas of their part, unless they are empty or words of a
        later part have come; ``MAX_TEXT`` characters of an item are kept. Function calls count only
        of a completed ``response.done``.
        """
        match input:
            case inputs.ServerEventReceived(event=InputCommitted(item_id)):
                self._find_or_add_entry("caller", item_id, now)
            case inputs.ServerEventReceived(event=InputTranscribed(item_id, text)):
                entry = self._find_or_add_entry("caller", item_id, now)
                entry.text, entry.complete = text.strip()[:MAX_TEXT], True
            case inputs.ServerEventReceived(event=ResponseCreated(response_id)):
                if self._control.capabilities.late_words:
                    # Its place is where it was heard; its only item has the same name.
                    self._find_or_add_entry("agent", response_id, now)
            case inputs.ServerEventReceived(event=AgentTranscriptDelta() as delta):
                entry = self._find_or_add_agent_entry(delta.response_id, delta.item_id, now)
                _begin_part(entry, delta.content_index)
                if delta.until_ms is None:
                    # A server that tells no times of words: they end at what has come by now.
                    self._mark(entry, self._control.playback.received_ms(entry.item_id))
                entry.text = (entry.text + delta.delta)[:MAX_TEXT]
                if delta.until_ms is not None:
                    self._mark(entry, delta.until_ms)
            case inputs.ServerEventReceived(event=AgentTranscript() as whole):
                entry = self._find_or_add_agent_entry(whole.response_id, whole.item_id, now)
                entry.complete = True
                _begin_part(entry, whole.content_index)
                if whole.transcript and whole.content_index == entry.part:
                    entry.text = (entry.text[: entry.part_at] + whole.transcript)[:MAX_TEXT]
            case inputs.ServerEventReceived(event=ResponseDone() as done):
                for item in done.output:
                    if item.get("type") == "function_call" and done.status == "completed":
                        self._add_call(item, now)
            case inputs.ServerEventReceived(event=ItemDeleted(item_id)):
                self._on_item_deleted(item_id)
        return []

    def tick(self, now: float) -> list[Output]:
        """Do nothing and return no output: no entry waits for time."""
        return []

    def add_sent_items(self, todo: list[Output], now: float) -> None:
        """Add the items that we put into the conversation with these outputs
        (``conversation.item.create``): results of tools, messages. Those that seed a session
        (``Send.seed``) are left out, since they are there already."""
        for output in todo:
            if type(output) is Send and type(output.command) is CreateItem and not output.seed:
                self._add_item(output.command.item, now)

    def on_interpreter_event(self, input: inputs.InterpreterEvent, now: float) -> None:
        """Add the words of an interpreted call: those that the interpreting session heard of a
        party, or what it said to the listener (``to_caller``, ``to_callee``). Other events are
        ignored."""
        match input.event:
            case InputTranscribed():
                who = "caller" if input.listener == "callee" else "callee"
            case AgentTranscript():
                who = f"to_{input.listener}"
            case _:
                return
        text = input.event.transcript.strip()[:MAX_TEXT]
        self._add_entry(Entry(self._control.timeline.ms(now), who, text, complete=True))

    def on_session_replaced(self) -> None:
        """Take no more words of the items so far, whose ids may come again. If a response runs and
        the last entry is the agent's, all its words so far count as heard, and the entry as not
        heard to its end; an entry that was cut before stays as it is."""
        for entry in self._by_item.values():
            entry.complete = True
        self._by_past_item.insert(0, self._by_item)
        self._by_item = {}
        active = self._control.responses.active
        last = next((one for one in reversed(self._entries) if one.who == "agent"), None)
        if active is None or last is None or last is not self._entries[-1]:
            return
        if last.heard is None:
            last.heard = last.text

    # ---- what is known

    @property
    def response_due(self) -> bool:
        """Whether a session that takes over owes a response: the last words are not the agent's
        (:attr:`unanswered`), or are the agent's and were not heard to their end."""
        last = self._last_said
        return self.unanswered or (last is not None and last.heard is not None)

    @property
    def unanswered(self) -> bool:
        """Whether the last entry, not counting function calls and system messages, is not the
        agent's (the caller's, a tool result, words of an interpreted call). False where there is no
        entry yet."""
        last = self._last_said
        return last is not None and last.who != "agent"

    @property
    def _last_said(self) -> Entry | None:
        """The last entry that is no function call or system message; None without one."""
        said = (one for one in reversed(self._entries) if one.who not in ("call", "system"))
        return next(said, None)

    @property
    def words_missing(self) -> bool:
        """Whether one of the last ``_LATEST`` spoken entries of caller or agent that have an item
        id still lacks its complete words; also where the server never sends them."""
        spoken = [one for one in self._entries if one.who in ("caller", "agent") and one.item_id]
        return any(not one.complete for one in spoken[-_LATEST:])

    @property
    def changes(self) -> list[UpdateSession]:
        """The ``session.update`` commands in force (language, hold and wait), which a new session
        gets too."""
        return list(self._control.changes.values())

    def as_json(self) -> list[dict[str, Any]]:
        """Return all entries for the record, oldest first (:meth:`Entry.as_json`); a turn without a
        transcript has empty text."""
        return [entry.as_json() for entry in self._entries]

    def seed(self) -> list[Mapping[str, Any]]:
        """Return the items that seed a new session: first the messages of the route, then the
        conversation as it was heard, oldest first.

        Of the latter only the latest, at most ``SEED_ENTRIES`` and ``SEED_TEXT`` characters; a
        system message before them tells that earlier ones were left out, here or for
        ``MAX_ENTRIES``. A tool result whose call is not among them is left out, too. Function calls
        and results are the items themselves, under ids of their own (:meth:`CallIds.seeded`), a
        private result with its text. Remembers what was there for :meth:`since_seed`.
        """
        items: list[Mapping[str, Any]] = []
        room, whole = SEED_TEXT, True
        self._seeded = {id(entry) for entry in self._entries if _seed_item_of(entry) is not None}
        for entry in reversed(self._entries):
            item = _seed_item_of(entry)
            if item is None:
                continue
            room -= len(entry.text)
            if room < 0 or len(items) >= SEED_ENTRIES:
                whole = False
                break
            items.append(item)
        if not whole or self._control.timeline.record.transcript_dropped:
            items.append(message("system", LEFT_OUT))
        items.reverse()
        # A result without its call is an error to the server.
        calls = {item["call_id"] for item in items if item.get("type") == "function_call"}
        first, seeded = self._control.plan.content.messages, self._control.call_ids.seeded
        return [message(role, text) for role, text in first] + [
            {**item, "call_id": seeded(item["call_id"])} if "call_id" in item else item
            for item in items
            if item.get("type") != "function_call_output" or item["call_id"] in calls
        ]

    def since_seed(self) -> str:
        """Return what was said and done since the latest :meth:`seed`, as it was heard, a line
        ("Caller: ...") for each entry; "" without any. Private results have their text. For a
        session that was seeded when it was opened and takes over later."""
        lines = []
        for entry in self._entries:
            if id(entry) in self._seeded or _seed_item_of(entry) is None:
                continue
            said = entry.text if entry.heard is None else f"{entry.heard} …"
            if entry.who == "result" and entry.item is not None:
                said = str(entry.item.get("output", ""))[:MAX_TEXT]
            lines.append(f"{_SPEAKERS.get(entry.who, entry.who)}: {said}")
        return "\n".join(lines)

    # ---- how

    def _find_or_add_entry(self, who: str, item_id: str, now: float) -> Entry:
        """Return the entry of an item of this session; append a new one where there is none, and
        always for an empty ``item_id``."""
        entry = self._by_item.get(item_id)
        if entry is None:
            entry = self._add_entry(Entry(self._control.timeline.ms(now), who, item_id=item_id))
        return entry

    def _find_or_add_agent_entry(self, response_id: str, item_id: str, now: float) -> Entry:
        """Return the agent's entry of an item, new or not. Where its response was interrupted or
        dropped before any audio of the item came, the entry counts as not heard at all."""
        entry = self._find_or_add_entry("agent", item_id, now)
        playback = self._control.playback
        if playback.was_interrupted(response_id) and not playback.received_ms(item_id):
            entry.heard = ""  # its words come after the cut, and no sound of it was let through
        return entry

    def _add_entry(self, entry: Entry) -> Entry:
        """Append an entry and return it; above ``MAX_ENTRIES`` the oldest is removed and counted in
        the record."""
        if len(self._entries) >= MAX_ENTRIES:
            gone = self._entries.pop(0)
            for known in (self._by_item, *self._by_past_item):
                if known.get(gone.item_id) is gone:
                    del known[gone.item_id]
            self._control.timeline.record.transcript_dropped += 1
        self._entries.append(entry)
        if entry.item_id:
            self._by_item[entry.item_id] = entry
        return entry

    def _add_item(self, item: Mapping[str, Any], now: float) -> None:
        """Add an item that we sent: a tool result (its text is "(private)" where its call is in
        ``control.private``; the item is kept whole for :meth:`seed`), or a message, with type and
        size in place of an image. A message of the role ``user`` is the caller's. Other items are
        ignored."""
        at_ms = self._control.timeline.ms(now)
        if item.get("type") == "function_call_output":
            text = str(item.get("output", ""))[:MAX_TEXT]
            if item.get("call_id") in self._control.private:
                text = "(private)"
            self._add_entry(Entry(at_ms, "result", text, item=item))
        elif item.get("type") == "message":
            parts = item.get("content") or []
            text = " ".join(_text_of(part) for part in parts)[:MAX_TEXT]
            who = "caller" if item.get("role") == "user" else str(item.get("role", "system"))
            self._add_entry(Entry(at_ms, who, text))

    def _add_call(self, item: Mapping[str, Any], now: float) -> None:
        """Add a function call of the model; one with arguments of more than ``MAX_TEXT`` characters
        is left out."""
        call_id = str(item.get("call_id", ""))
        name, arguments = str(item.get("name", "")), str(item.get("arguments") or "{}")
        if len(arguments) > MAX_TEXT:
            return
        call = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        entry = Entry(self._control.timeline.ms(now), "call", f"{name} {arguments}", item=call)
        self._add_entry(entry)

    def _mark(self, entry: Entry, received: int) -> None:
        """Mark that the words so far end at ``received`` ms of the item's audio; no mark where an
        earlier one is there already for that time or a later one, or ``_MARKS`` are. Where the item
        was interrupted before, set anew which words were heard."""
        marks = entry.marks
        if (not marks or marks[-1][1] < received) and len(marks) < _MARKS:
            marks.append((len(entry.text), received))
        if entry.interrupted_at is not None:
            entry.heard = _heard_words(entry, *entry.interrupted_at)

    def _on_part_interrupted(self, heard: Heard) -> None:
        """Set which words were heard of an item of which a part was not heard to its end. Nothing
        where it has no entry yet: words that come later count as heard, unless no audio of the item
        had come (:meth:`_find_or_add_agent_entry`)."""
        by_item = self._by_past_item[heard.past - 1] if heard.past else self._by_item
        entry = by_item.get(heard.item_id)
        if entry is not None:
            entry.interrupted_at = heard.item_played_ms, heard.item_received_ms
            entry.heard = _heard_words(entry, *entry.interrupted_at)

    def _on_item_deleted(self, item_id: str) -> None:
        """Handle ``conversation.item.deleted``: remove the entry, if it is the caller's. Those of
        the agent stay, and those of items that context trimming has deleted; the id is forgotten
        in any case, so that later words of the item get a new entry."""
        entry = self._by_item.pop(item_id, None)
        if item_id in self._control.trimmed_items:
            self._control.trimmed_items.discard(item_id)
        elif entry is not None and entry.who == "caller":
            self._entries.remove(entry)


def _begin_part(entry: Entry, part: int) -> None:
    """Note that words of this part (``content_index``) follow; those of a later one than before are
    set off by a space."""
    if part > entry.part:
        entry.text += " " if entry.text and not entry.text.endswith(" ") else ""
        entry.part, entry.part_at = part, len(entry.text)


def _heard_words(entry: Entry, played_ms: int, received_ms: int) -> str:
    """Return the words of an entry that fall into the first ``played_ms`` of its audio: between its
    marks in proportion, and rounded down to a whole word. "" where nothing was played. Audio that
    came before the first words is theirs, too.

    Args:
        received_ms: of its audio, at which its words so far end.
    """
    text, marks = entry.text, [mark for mark in entry.marks if mark[0] or not mark[1]]
    marks.append((len(text), received_ms))
    if played_ms <= 0 or received_ms <= 0:
        return ""
    at = bisect_left([ms for _, ms in marks], played_ms)
    chars, ms = marks[min(at, len(marks) - 1)]
    before_chars, before_ms = marks[at - 1] if at > 0 else (0, 0)
    if ms > before_ms:
        part = (played_ms - before_ms) / (ms - before_ms)
        chars = before_chars + round((chars - before_chars) * part)
    if chars >= len(text):
        return text
    end = text.rfind(" ", 0, chars + 1)
    return text[: end if end > 0 else 0]


def _text_of(part: Mapping[str, Any]) -> str:
    """Return the text of a content part; of an image "(type, size)"."""
    image = part.get("image_url")
    return _image_text(str(image)) if image else str(part.get("text", ""))


def _image_text(uri: str) -> str:
    """Return "(type, size)" of an image in a data URI with base64 (RFC 2397), which itself is not
    kept."""
    head, _, data = uri.partition(";base64,")
    size = len(data) * 3 // 4 - data[-2:].count("=")
    return f"({head.removeprefix('data:')}, {size} bytes)"


def _seed_item_of(entry: Entry) -> Mapping[str, Any] | None:
    """Return the item that stands for this entry in a new session. A function call or result is
    the item itself; words become a message of the assistant (agent), the user (caller) or the
    system (others), as they were heard, with "…" where they were cut. None where the entry has no
    words, or none was heard."""
    if entry.item is not None:
        return entry.item
    said = entry.text if entry.heard is None else entry.heard
    if not said:
        return None
    if entry.who == "agent":
        return message("assistant", said if entry.heard is None else f"{said} …")
    return message("user" if entry.who == "caller" else "system", said)
