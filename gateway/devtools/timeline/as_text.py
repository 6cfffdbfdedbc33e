# SPDX-License-Identifier: GPL-2.0-or-later
"""A call's timeline as text: caller on the left, agent on the right, time downwards."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.devtools.timeline import (
    AgentTurn,
    CallerTurn,
    Cost,
    Direction,
    Entry,
    Interruption,
    Quality,
    Reply,
    Said,
    Sound,
    Story,
    began_speaking,
    replies,
)

CALLER, AGENT, RED, DTMF, QUIET = "bright_blue", "cyan", "bold red", "yellow", "dim"


def clock(at_ms: float) -> str:
    """Return milliseconds since the INVITE as ``m:ss.mmm``."""
    minutes, rest = divmod(max(at_ms, 0.0) / 1000, 60)
    return f"{int(minutes)}:{rest:06.3f}"


def ms(value: float) -> str:
    """Return ``6420.0`` as ``6,420 ms``."""
    return f"{value:,.0f} ms"


@dataclass(frozen=True, slots=True)
class _Row:
    at_ms: float
    caller: Text | None = None
    agent: Text | None = None
    order: int = 0


def render(story: Story, sound: Sound | None = None) -> RenderableType:
    """Return the timeline for a rich console; ``sound`` adds delays measured in the recording."""
    measured = replies(story, sound) if sound is not None else []
    return Group(_head(story), _table(story, measured, sound), Text(), _foot(story, measured))


def _head(story: Story) -> RenderableType:
    record = story.record
    line = Text.assemble(
        (short_address(record.caller) or "?", f"bold {CALLER}"),
        " → ",
        (short_address(record.called) or "?", f"bold {AGENT}"),
    )
    facts = [f"route {record.route}" if record.route else "", record.codec or ""]
    if record.started_at is not None:
        facts.append(f"{record.started_at:%Y-%m-%d %H:%M:%S} UTC")
    facts.append(f"{record.length_ms / 1000:.1f} s")
    line.append("   " + " · ".join(fact for fact in facts if fact), QUIET)
    ids = Text(f"call {record.call_id}", QUIET)
    if record.sip_call_id:
        ids.append(f"   Call-ID {record.sip_call_id}", QUIET)
    if record.session_id:
        ids.append(f"   session {record.session_id}", QUIET)
    return Panel(Group(line, ids), box=box.ROUNDED, border_style=QUIET)


def _table(story: Story, measured: list[Reply], sound: Sound | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
    table.add_column("time", justify="right", style=QUIET, no_wrap=True)
    table.add_column("caller", ratio=2)
    table.add_column("agent", ratio=3)
    for row in sorted(_rows(story, measured, sound), key=lambda row: (row.at_ms, row.order)):
        table.add_row(clock(row.at_ms), row.caller or "", row.agent or "")
    return table


def _rows(story: Story, measured: list[Reply], sound: Sound | None) -> list[_Row]:
    record = story.record
    rows = [_Row(0.0, caller=Text("calls (INVITE)", QUIET), order=-1)]
    times = record.times_ms
    if times.session is not None:
        rows.append(_Row(times.session, agent=Text("session is up", QUIET), order=1))
    if times.answered is not None:
        rows.append(_Row(times.answered, agent=Text("answers (200)", QUIET), order=2))
    by_turn = {reply.turn.from_ms: reply for reply in measured}
    for turn in story.agent:
        rows.append(_Row(turn.from_ms, agent=_answer(turn, by_turn.get(turn.from_ms)), order=3))
        if (stop := turn.interruption) is not None:
            rows.append(_Row(stop.at_ms, *_interruption(stop, sound), order=4))
    rows += [_Row(turn.from_ms, caller=_speech(turn), order=3) for turn in story.caller]
    rows += [_Row(at, caller=Text.assemble("key ", (f" {key} ", f"reverse {DTMF}")), order=3)
             for at, key in story.keys]  # fmt: skip
    for run in record.digits:
        ended = f" ({run.ended_by})" if run.ended_by else ""
        told = Text.assemble("digits ", (run.digits, f"bold {DTMF}"), " to the model", ended)
        rows.append(_Row(run.at_ms, agent=told, order=5))
    for interruption in record.interruptions:
        if not any(turn.interruption is interruption for turn in story.agent):
            rows.append(_Row(interruption.at_ms, agent=Text(_action(interruption), RED), order=4))
    rows += [_Row(one.at_ms, *_interpreted(one), order=5) for one in story.interpreted]
    rows += [_Row(note.t_ms, agent=_note(note), order=6) for note in story.notes]
    if record.ending is not None:
        rows.append(_Row(record.length_ms, *_ending(story), order=9))
    return rows


def _speech(turn: CallerTurn) -> Text:
    length = f"{(turn.to_ms - turn.from_ms) / 1000:.1f} s"
    text = Text.assemble(("● speaks ", CALLER), (length, f"bold {CALLER}"))
    if turn.open:
        text.append(" (to the end of the call)", QUIET)
    if turn.text:
        text.append(f"\n“{turn.text}”", CALLER)
    return text


def _answer(turn: AgentTurn, reply: Reply | None) -> Text:
    length = f"{turn.played_ms / 1000:.1f} s"
    text = Text.assemble(("● speaks ", AGENT), (length, f"bold {AGENT}"))
    if turn.after_ms is not None:
        text.append(f"  {ms(turn.after_ms)} after {turn.after}", QUIET)
    if reply is not None:
        text.append(f", {ms(reply.delay_ms)} after the caller's last sound", QUIET)
    if turn.text:
        heard, lost = turn.heard_text()
        text.append("\n“", AGENT)
        text.append(heard, AGENT)
        if lost:
            text.append("✂ ", RED)
            text.append(lost, "dim strike")
        text.append("”", AGENT)
    return text


def _interpreted(said: Said) -> tuple[Text | None, Text | None]:
    """Return the caller's and the agent's column for words in an interpreted call."""
    heard = "hears " if said.who.startswith("to_") else ""
    if said.who.endswith("caller"):
        return Text(f"{heard}“{said.text}”", CALLER), None
    return None, Text.assemble(("callee ", QUIET), (f"{heard}“{said.text}”", AGENT))


def _interruption(cut: Interruption, sound: Sound | None) -> tuple[Text, Text]:
    words = {"digit": "✂ presses a key", "speech": "✂ interrupts"}
    caller = Text(words.get(cut.trigger, ""), RED)
    began = began_speaking(sound, cut.at_ms) if sound is not None else None
    if began is not None and cut.trigger == "speech":
        caller.append(f", {ms(cut.at_ms - began)} after the first sound", QUIET)
    agent = Text.assemble(
        ("✂ cut: ", RED),
        (f"heard {cut.played_ms:,} of {cut.received_ms:,} ms", "bold"),
        f", {ms(cut.flushed_ms)} dropped; {_action(cut)}",
    )
    return caller, agent


def _action(cut: Interruption) -> str:
    return {
        "truncate": f"truncated at {cut.played_ms:,} ms",
        "delete": "nothing of it was heard, so it is deleted",
    }.get(cut.action, "nothing to truncate")


_TOOL = "bold magenta"

_NOTES: Mapping[str, tuple[str, str]] = {
    "idle_prompted": ("asks the silent caller", QUIET),
    "idle": ("gives the silent caller up", QUIET),
    "machine_detected": ("a machine ({kind}): {why}", RED),
    "guardrail": ("guard {rule} on the {who}'s words", RED),
    "response_without_audio": ("a response without audio: {content}", RED),
    "fallback_step": ("fallback step: {do}", RED),
    "interruption_suppressed": ("is heard out: this does not interrupt", QUIET),
    "voicemail_message": ("leaves its message (beep: {beep})", QUIET),
    "handover_begins": ("opens the next session, before the server ends this one", QUIET),
    "handed_over": ("the next session has taken over", QUIET),
    "budget_warning": ("budget nearly spent: {budget}", RED),
    "budget_exceeded": ("budget spent: {budget}", RED),
    "holding": ("puts the caller on hold", QUIET),
    "hold_ended": ("takes the caller back after {seconds} s", QUIET),
    "hangup_requested": ("hangs up once the goodbye has been heard", QUIET),
    "error": ("error {code}: {message}", RED),
}
"""Words and style of events; in braces are fields of the event."""


def _note(entry: Entry) -> Text:
    """Return an event in words; one that is not known by its name and fields."""
    name, by = (entry.text("name"), _TOOL), entry.text("by")
    if entry.event in _NOTES:
        words, style = _NOTES[entry.event]
        fields = {key: entry.text(key) for key in entry.extra}
        return Text(words.format_map(defaultdict(str, fields)), style)
    match entry.event:
        case "tool":
            return Text.assemble("tool ", name)
        case "tool_done" | "mcp_call":
            return Text.assemble("tool ", name, f": {entry.text('outcome')}")
        case "tool_refused" | "tool_late":
            why = entry.text("reason") or "no result in time"
            return Text.assemble("tool ", name, (f": {why}", RED))
        case "tool_slow":
            return Text.assemble("tool ", name, " takes long")
        case "approval":
            return Text.assemble(f"{by} decides about ", name)
        case "approved" | "not_approved":
            said = "yes" if entry.event == "approved" else "no"
            return Text.assemble(name, f": {by} says {said}")
        case "truncated":
            end = entry.extra.get("audio_end_ms")
            return Text(f"the server confirms the cut at {end:,} ms" if end else "truncated", QUIET)
        case "data":
            failed = entry.text("failed")
            what = (f"no data of the call: {failed}", RED) if failed else "has the data of the call"
            return Text.assemble(what)
        case "caller_history":
            known = entry.extra.get("calls") or []
            failed = entry.text("failed")
            told = f"{len(known)} earlier call{'' if len(known) == 1 else 's'}"
            return Text.assemble((f"no earlier calls: {failed}", RED) if failed else told)
        case "false_interruption":
            heard = entry.text("heard")
            return Text(
                f"goes on: {f'“{heard}”' if heard else 'a cough'} interrupts nothing", QUIET
            )
        case "silence_detected":
            return Text(f"nothing heard: {entry.text('rule').replace('_', ' ')}", RED)
        case "session_lost":
            detail = entry.text("detail")
            return Text(f"no session: {entry.text('why').replace('_', ' ')}, {detail}", RED)
        case "session_replaced":
            return Text(f"has a session again, after {ms(entry.extra.get('after_ms', 0))}")
        case "command":
            act = re.sub("(?<=[a-z])(?=[A-Z])", " ", entry.text("command")).lower()
            return Text(f"asked from outside, or by a tool: {act}", QUIET)
        case _:
            facts = "".join(f" {key}={v}" for key, v in entry.extra.items() if v is not None)
            return Text(f"{entry.event.replace('_', ' ')}{facts}".strip(), QUIET)


def _ending(story: Story) -> tuple[Text | None, Text | None]:
    ending = story.record.ending
    assert ending is not None
    text = Text.assemble(("■ ends the call: ", "bold"), ending_words(story))
    return (text, None) if ending.by == "caller" else (None, text)


def ending_words(story: Story) -> str:
    """Return who ended the call and why, as ``model, goodbye (200)``."""
    ending = story.record.ending
    if ending is None:
        return "not known"
    code = f" ({ending.sip_code})" if ending.sip_code else ""
    return f"{ending.by}, {ending.why.replace('_', ' ')}{code}"


def _foot(story: Story, measured: list[Reply]) -> RenderableType:
    record, times = story.record, story.record.times_ms
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=QUIET)
    grid.add_column()
    if times.answered is not None:
        first = f", first agent audio after {ms(times.first_audio)}" if times.first_audio else ""
        grid.add_row("set-up", f"answered {ms(times.answered)} after the INVITE{first}")
    if story.delays:
        middle = f"median {ms(median(story.delays))} after the turn's end was told"
        if measured:
            middle += f", {ms(median(r.delay_ms for r in measured))} after the last sound"
        grid.add_row("answers", middle)
    cuts = [
        f"heard {one.played_ms:,} of {one.received_ms:,} ms"
        for one in record.interruptions
        if one.action != "none"
    ]
    if cuts:
        grid.add_row("interruptions", "; ".join(cuts))
    if record.digits:
        grid.add_row("digits", " ".join(run.digits for run in record.digits))
    if record.underruns or record.dropped_uplink_frames:
        grid.add_row(
            "[red]audio[/]",
            f"{record.underruns} underruns ({ms(record.underrun_ms)}), "
            f"{record.dropped_uplink_frames} caller frames dropped",
        )
    else:
        grid.add_row("audio", "no underrun, no frame dropped")
    if record.cost.responses or record.cost.session_seconds:
        grid.add_row("cost", escape(cost_words(record.cost)))
    for line in quality_lines(record.quality):
        grid.add_row("quality", line)
    if record.ending is not None:
        detail = f": {record.ending.detail}" if record.ending.detail else ""
        grid.add_row("ending", escape(ending_words(story) + detail))
    return grid


def cost_words(cost: Cost) -> str:
    """Return the cost, as ``0.0070 USD in 3 responses of gpt-realtime``."""
    amount = f"{cost.priced:.4f} {cost.currency}"
    if cost.total is None:
        without = ", ".join(cost.unpriced) or "something"
        amount = f"at least {amount} (no price for {without})" if cost.priced else "not known"
    if cost.session_seconds:
        return f"{amount} for {cost.session_seconds:.0f} s of Live sessions"
    return f"{amount} in {cost.responses} responses of {cost.model}"


def quality_lines(quality: Quality) -> list[str]:
    """Return MOS, loss and jitter of each direction, and the round-trip time, a line each."""
    lines = [
        f"{who}: {_direction(heard)}"
        for who, heard in (("from the caller", quality.rx), ("to the caller", quality.tx))
        if heard is not None and heard.mos is not None
    ]
    if quality.rtt_ms is not None:
        lines.append(f"round trip {quality.rtt_ms.mean:.0f} ms, at most {quality.rtt_ms.max:.0f}")
    return lines


def _direction(heard: Direction) -> str:
    facts = []
    if heard.mos is not None:
        facts.append(f"MOS {heard.mos.mean:.1f}, at least {heard.mos.min:.1f}")
    facts.append(f"{heard.lost_percent:g} % lost")
    if heard.late:
        facts.append(f"{heard.late} packets too late")
    if heard.jitter_ms is not None:
        facts.append(f"jitter {heard.jitter_ms.mean:.0f} ms, at most {heard.jitter_ms.max:.0f}")
    return ", ".join(facts)


def short_address(uri: str) -> str:
    """Return the user part of a SIP or tel URI, or the host where it has none."""
    bare = uri.removeprefix("sips:").removeprefix("sip:").removeprefix("tel:")
    return bare.partition("@")[0] or bare
