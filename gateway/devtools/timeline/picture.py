# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws a call's timeline as a PNG: two lanes, heard and dropped audio, keys, the end.

Time runs to the right; a long call goes on in the next strip, like a line of text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from gateway.devtools.timeline import AgentTurn, Reply, Sound, Story, replies
from gateway.devtools.timeline.as_text import ending_words, ms, short_address

CALLER, AGENT, CUT, KEYS = "#2f5fd0", "#0e8a7d", "#d4343f", "#b7791f"
INK, SOFT, RULE, PAPER = "#1c2430", "#6b7686", "#dfe4ea", "#ffffff"
CALLER_TINT, AGENT_TINT, LANE_TINT = "#e3eafb", "#d9f1ee", "#f6f8fa"

STRIP_S = 40.0
"""Seconds in one strip of a long call; one strip holds a call up to 1.25 times that."""

MAX_STRIPS = 30
"""Twenty minutes; a longer call gets longer strips."""

WIDTH_IN, STRIP_IN, HEAD_IN, FOOT_IN, DPI = 16.0, 4.75, 1.65, 0.35, 150

# Heights inside a strip: the caller's lane above, the agent's below it, its answers at the foot.
_CALLER, _AGENT, _HALF = 3.0, 1.62, 0.56
_ANSWER_TOP, _ANSWER_HEIGHT, _ANSWER_STEP = 0.86, 0.58, 0.66
_FLAG_ROWS = (0.26, 0.62)
_TOP, _BOTTOM = 4.4, -0.5


@dataclass(frozen=True, slots=True)
class _Strip:
    from_s: float
    to_s: float
    seconds: float

    def holds(self, at_s: float) -> bool:
        return self.from_s <= at_s <= self.to_s


def draw(story: Story, file: Path, sound: Sound | None = None) -> None:
    """Write the picture as PNG; ``sound`` adds waveforms and measured delays. Raises OSError."""
    with mpl.rc_context({"font.family": ["DejaVu Sans"], "hatch.linewidth": 0.7}):
        strips = _strips(story)
        height = HEAD_IN + STRIP_IN * len(strips) + FOOT_IN
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor=PAPER)
        FigureCanvasAgg(figure)
        measured = replies(story, sound) if sound is not None else []
        _head(figure, story, measured, height)
        for number, strip in enumerate(strips):
            bottom = (height - HEAD_IN - STRIP_IN * (number + 1) + 0.42) / height
            axes = figure.add_axes((0.068, bottom, 0.912, (STRIP_IN - 0.55) / height))
            _Drawing(axes, story, strip, sound, measured).draw()
        _legend(figure, height, sound is not None)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Title": f"Call {story.record.call_id}"})


def _strips(story: Story) -> list[_Strip]:
    length = max(story.record.length_ms / 1000, 1.0)
    ends = length + max(0.4, length * 0.02)
    if ends <= STRIP_S * 1.25:
        return [_Strip(-ends * 0.008, ends, ends)]
    seconds = max(STRIP_S, ends / MAX_STRIPS)
    count = math.ceil(ends / seconds)
    return [_Strip(max(n * seconds, -0.3), (n + 1) * seconds, seconds) for n in range(count)]


def _head(figure: Figure, story: Story, measured: list[Reply], height: float) -> None:
    record = story.record

    def y(inches: float) -> float:
        return 1 - inches / height

    who = short_address(record.caller) or "unknown"
    whom = short_address(record.called) or "unknown"
    figure.text(0.02, y(0.52), f"{who}  →  {whom}", size=21, weight="bold", color=INK)
    facts = [f"route {record.route}" if record.route else "", record.codec or ""]
    if record.started_at is not None:
        facts.append(f"{record.started_at:%d %B %Y, %H:%M:%S} UTC")
    facts += [f"{record.length_ms / 1000:.1f} s", f"call {record.call_id}"]
    line = "   ·   ".join(fact for fact in facts if fact)
    figure.text(0.02, y(0.85), line, size=10, color=SOFT)
    for number, (figure_, what, colour) in enumerate(_figures(story, measured)):
        x = 0.02 + number * 0.193
        figure.text(x, y(1.33), figure_, size=15, weight="bold", color=colour)
        figure.text(x, y(1.56), what, size=9.5, color=SOFT)


def _figures(story: Story, measured: list[Reply]) -> list[tuple[str, str, str]]:
    record, times = story.record, story.record.times_ms
    tiles: list[tuple[str, str, str]] = []
    if times.answered is not None:
        tiles.append((ms(times.answered), "from INVITE to answer", INK))
    if measured:
        middle = median(reply.delay_ms for reply in measured)
        tiles.append((ms(middle), "last sound to answer, median", INK))
    elif story.delays:
        tiles.append((ms(median(story.delays)), "end of turn to answer, median", INK))
    cuts = [cut for cut in record.interruptions if cut.action != "none"]
    if len(cuts) == 1:
        told = "heard of the answer cut short" if cuts[0].action == "truncate" else "heard: deleted"
        tiles.append((f"{cuts[0].played_ms:,} of {cuts[0].received_ms:,} ms", told, CUT))
    elif cuts:
        tiles.append((f"{len(cuts)} interruptions", "each cut at what was heard", CUT))
    if record.digits:
        pressed = "  ".join(run.digits for run in record.digits[:6])
        tiles.append((pressed, "digits to the model", KEYS))
    if record.ending is not None:
        why = record.ending.why.replace("_", " ")
        tiles.append((why, f"ended by {record.ending.by}", INK))
    return tiles[:5]


class _Drawing:
    """Draws one strip of the picture."""

    def __init__(
        self, axes: Axes, story: Story, strip: _Strip, sound: Sound | None, measured: list[Reply]
    ) -> None:
        self.axes = axes
        self.story = story
        self.strip = strip
        self.sound = sound
        self.measured = measured
        self.levels = _levels(story.agent)
        self._flags: list[list[tuple[float, float]]] = [[] for _ in _FLAG_ROWS]

    def draw(self) -> None:
        """Draw everything, from the back to the front."""
        self._frame()
        self._turns()
        if self.sound is not None:
            self._waves(self.sound)
        self._answers()
        self._delays()
        self._keys()
        self._milestones()
        self._interruptions()

    def _frame(self) -> None:
        axes, strip = self.axes, self.strip
        axes.set_xlim(strip.from_s, strip.from_s + strip.seconds)
        axes.set_ylim(_BOTTOM, _TOP)
        axes.set_yticks([])
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        step = next(s for s in (1, 2, 5, 10, 20, 60, 120, 600) if strip.seconds / s <= 32)
        first = math.ceil(max(strip.from_s, 0) / step) * step
        ticks = np.arange(first, strip.to_s + 1e-6, step)
        axes.set_xticks(ticks, [_stamp(at) for at in ticks], color=SOFT, size=9)
        axes.tick_params(length=3, color=RULE)
        for middle, name, colour in ((_CALLER, "caller", CALLER), (_AGENT, "agent", AGENT)):
            axes.axhspan(middle - _HALF, middle + _HALF, color=LANE_TINT, lw=0, zorder=0)
            axes.text(-0.012, middle, name, transform=axes.get_yaxis_transform(), ha="right",
                      va="center", size=12, weight="bold", color=colour)  # fmt: skip
        axes.text(-0.012, _ANSWER_TOP - _ANSWER_HEIGHT / 2, "answers\nreceived", ha="right",
                  va="center", size=9, color=SOFT, transform=axes.get_yaxis_transform(),
                  linespacing=1.25)  # fmt: skip
        for at in ticks:
            axes.axvline(at, color=RULE, lw=0.5, zorder=0.5)

    def _turns(self) -> None:
        for turn in self.story.caller:
            self._bar(turn.from_ms, turn.to_ms, _CALLER, CALLER_TINT, CALLER)
        for answer in self.story.agent:
            self._bar(answer.from_ms, answer.to_ms, _AGENT, AGENT_TINT, AGENT)

    def _bar(self, from_ms: float, to_ms: float, middle: float, tint: str, edge: str) -> None:
        width = max(to_ms - from_ms, 20) / 1000
        plain = self.sound is None
        self.axes.add_patch(
            FancyBboxPatch(
                (from_ms / 1000, middle - _HALF + 0.07), width, 2 * _HALF - 0.14,
                boxstyle="round,pad=0,rounding_size=0.07", mutation_aspect=1.0,
                facecolor=edge if plain else tint, alpha=0.85 if plain else 1.0,
                edgecolor=edge, linewidth=0.7, zorder=2, clip_on=True,
            )
        )  # fmt: skip

    def _waves(self, sound: Sound) -> None:
        times = sound.times_s()
        inside = (times >= self.strip.from_s) & (times <= self.strip.to_s)
        for peaks, middle, colour in (
            (sound.caller, _CALLER, CALLER),
            (sound.agent, _AGENT, AGENT),
        ):
            top = max(float(np.quantile(peaks, 0.999)), 0.05)
            wave = np.minimum(peaks[inside] / top, 1.0) * (_HALF - 0.14)
            self.axes.fill_between(
                times[inside], middle - wave, middle + wave, color=colour, lw=0, zorder=3
            )

    def _answers(self) -> None:
        for turn, level in zip(self.story.agent, self.levels, strict=True):
            top = _ANSWER_TOP - level * _ANSWER_STEP
            begin = turn.from_ms / 1000
            heard, received = turn.played_ms / 1000, turn.received_ms / 1000
            low = top - _ANSWER_HEIGHT
            self.axes.broken_barh(
                [(begin, heard)], (low, _ANSWER_HEIGHT), facecolors=AGENT, lw=0, zorder=3
            )
            if turn.interruption is not None and received > heard:
                self.axes.broken_barh(
                    [(begin + heard, received - heard)], (low, _ANSWER_HEIGHT),
                    facecolors="#f3f4f6", edgecolors="#b9c0ca", hatch="/////", lw=0.6, zorder=3,
                )  # fmt: skip
            self._answer_words(turn, begin, heard, received, low + _ANSWER_HEIGHT / 2)

    def _answer_words(
        self, turn: AgentTurn, begin: float, heard: float, received: float, middle: float
    ) -> None:
        words, lost = turn.heard_text()
        self._fitted(words.strip(), begin + 0.08, begin + heard - 0.05, middle, PAPER)
        stop = turn.interruption
        if stop is None or received <= heard:
            return
        dropped = stop.flushed_ms or stop.received_ms - stop.played_ms
        text = f"not heard, {ms(dropped)}:  {lost.strip()}" if lost else f"not heard, {ms(dropped)}"
        self._fitted(text, begin + heard + 0.1, begin + received - 0.05, middle, SOFT, halo=True)

    def _fitted(
        self, text: str, from_s: float, to_s: float, y: float, colour: str, halo: bool = False
    ) -> None:
        """Write as much of ``text`` as two lines take; nothing where not even a word fits."""
        to_s = min(to_s, self.strip.from_s + self.strip.seconds)
        if not text or to_s <= from_s or not self.strip.holds(from_s):
            return
        box = {"boxstyle": "round,pad=0.12", "fc": "#f3f4f6", "ec": "none"} if halo else None
        label = self.axes.text(from_s, y, "", size=8.5, color=colour, va="center", ha="left",
                               zorder=4, clip_on=True, bbox=box, linespacing=1.15)  # fmt: skip
        lines: list[str] = []
        words = text.split()
        while words and len(lines) < 2:
            count = self._fitting(label, words, to_s)
            if count == 0:
                lines.append(self._shortened(label, words[0][:-1], to_s))
                words = []
            else:
                lines.append(" ".join(words[:count]))
                words = words[count:]
        if words:
            lines[-1] = self._shortened(label, lines[-1], to_s)
        label.set_text("\n".join(line for line in lines if line))

    def _fitting(self, label: Text, words: list[str], to_s: float) -> int:
        count = 0
        while count < len(words):
            label.set_text(" ".join(words[: count + 1]))
            if self._right_end(label) > to_s:
                break
            count += 1
        return count

    def _shortened(self, label: Text, line: str, to_s: float) -> str:
        while line:
            label.set_text(f"{line.rstrip(' ,.;:')}…")
            if self._right_end(label) <= to_s:
                return label.get_text()
            line = line[:-1]
        return ""

    def _right_end(self, label: Text) -> float:
        extent = label.get_window_extent()
        return float(self.axes.transData.inverted().transform((extent.x1, extent.y0))[0])

    def _delays(self) -> None:
        measured = {reply.turn.from_ms: reply for reply in self.measured}
        middle = (_CALLER + _AGENT) / 2
        for turn in self.story.agent:
            reply = measured.get(turn.from_ms)
            if reply is not None:
                since, until = reply.from_ms / 1000, reply.to_ms / 1000
            elif turn.after_ms is not None:
                since, until = (turn.from_ms - turn.after_ms) / 1000, turn.from_ms / 1000
            else:
                continue
            if not self.strip.holds(since):
                continue
            self.axes.plot([since, since, until, until],
                           [_CALLER - _HALF, middle, middle, _AGENT + _HALF],
                           color=INK, lw=1.0, zorder=4, solid_joinstyle="miter")  # fmt: skip
            self.axes.text(until + self.strip.seconds * 0.004, middle,
                           ms((until - since) * 1000), size=8.5, color=INK, va="center",
                           zorder=5)  # fmt: skip

    def _keys(self) -> None:
        for at_ms, key in self.story.keys:
            if self.strip.holds(at_ms / 1000):
                self.axes.text(
                    at_ms / 1000, _CALLER, key, size=9, weight="bold", color=PAPER, zorder=6,
                    ha="center", va="center",
                    bbox={"boxstyle": "round,pad=0.22", "fc": KEYS, "ec": PAPER, "lw": 0.8},
                )  # fmt: skip

    def _interruptions(self) -> None:
        for cut in self.story.record.interruptions:
            at = cut.at_ms / 1000
            if not self.strip.holds(at):
                continue
            turn = next((t for t in self.story.agent if t.interruption is cut), None)
            level = self.levels[self.story.agent.index(turn)] if turn is not None else 0
            foot = _ANSWER_TOP - level * _ANSWER_STEP - _ANSWER_HEIGHT
            self.axes.plot([at, at], [foot, _CALLER + _HALF + 0.12], color=CUT, lw=1.5, zorder=5,
                           ls=(0, (4, 2)))  # fmt: skip
            words = {"digit": "key pressed", "speech": "interrupted"}
            who = words.get(cut.trigger, cut.trigger)
            told = {
                "truncate": f"{who}: heard {cut.played_ms:,} of {cut.received_ms:,} ms",
                "delete": f"{who}: nothing heard, deleted",
            }.get(cut.action, who)
            self._flag(at, told, CUT, short=f"{cut.played_ms:,} of {cut.received_ms:,}")

    def _milestones(self) -> None:
        times = self.story.record.times_ms
        if times.answered is not None and self.strip.holds(times.answered / 1000):
            self._line(times.answered / 1000, AGENT)
            self._flag(times.answered / 1000, "answered", AGENT)
        end = self.story.record.length_ms / 1000
        if self.strip.holds(end):
            self._line(end, INK)
            self._flag(end, ending_words(self.story), INK, end=True)
        for note in self.story.notes:
            at = note.t_ms / 1000
            if note.event in ("error", "tool") and self.strip.holds(at):
                colour = CUT if note.event == "error" else "#7a3fb0"
                name = note.text("code") if note.event == "error" else note.text("name")
                self.axes.plot([at], [_AGENT - _HALF], marker="^", ms=7, color=colour, zorder=6)
                self.axes.text(at + self.strip.seconds * 0.005, _AGENT - _HALF + 0.1, name,
                               size=8.5, color=colour, va="bottom", zorder=6)  # fmt: skip

    def _line(self, at: float, colour: str) -> None:
        self.axes.plot([at, at], [_AGENT - _HALF, _CALLER + _HALF + 0.12], color=colour, lw=1.3,
                       zorder=4)  # fmt: skip

    def _flag(self, at: float, text: str, colour: str, short: str = "", end: bool = False) -> None:
        """Put a label above the lanes, in the first row where it covers no other."""
        near_right = end or at > self.strip.from_s + self.strip.seconds * 0.8
        label = self.axes.text(
            at, 0.0, text, size=9.5, weight="bold", color=PAPER, zorder=7,
            ha="right" if near_right else "left", va="center",
            bbox={"boxstyle": "round,pad=0.3", "fc": colour, "ec": "none"},
        )  # fmt: skip
        for words in (text, short or text):
            label.set_text(words)
            first, last = self._ends(label)
            for row, taken in enumerate(self._flags):
                if all(last < other[0] or first > other[1] for other in taken):
                    taken.append((first, last))
                    label.set_y(_CALLER + _HALF + _FLAG_ROWS[row])
                    return
        label.remove()  # its line is there, and the text timeline has its words

    def _ends(self, label: Text) -> tuple[float, float]:
        extent = label.get_window_extent()  # of the words; the box around them is not laid out yet
        pad = 0.5 * 9.5 * DPI / 72
        back = self.axes.transData.inverted()
        corners = back.transform([(extent.x0 - pad, 0), (extent.x1 + pad, 0)])
        return float(corners[0][0]), float(corners[1][0])


def _levels(turns: list[AgentTurn]) -> list[int]:
    """Return a row (0 or 1) for each answer, so that dropped audio does not cover the next."""
    free = [-math.inf, -math.inf]
    levels: list[int] = []
    for turn in turns:
        level = 0 if free[0] <= turn.from_ms else 1
        free[level] = turn.from_ms + turn.received_ms
        levels.append(level)
    return levels


def _legend(figure: Figure, height: float, with_sound: bool) -> None:
    text = (
        "Waveforms: the recording at the caller's end.  Tinted: turns as the gateway played them "
        "and the session's turn detection told them."
        if with_sound
        else "Bars: turns as the gateway played them and the session's turn detection told them."
    )
    text += "  Hatched: received, and dropped when the caller interrupted.  Time: since the INVITE."
    figure.text(0.068, 0.22 / height, text, size=8.5, color=SOFT)


def _stamp(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}" if whole >= 60 else f"{whole} s"
