# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of suites for others: JUnit XML for a CI, one HTML page for people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree as ET

from gateway.devtools.call_suites.running import CallResult
from gateway.devtools.call_suites.verdicts import Mark, Said, Verdict
from gateway.devtools.scripted_caller import Span

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write (section 2.2)."""


def junit(results: Sequence[CallResult]) -> bytes:
    """Return results as JUnit XML: a ``testsuite`` for each file, a ``testcase`` for each call."""
    root = ET.Element("testsuites")
    _count(root, results)
    for name in dict.fromkeys(one.call.suite for one in results):
        mine = [one for one in results if one.call.suite == name]
        suite = ET.SubElement(root, "testsuite", name=_xml(name))
        suite.set("timestamp", min(one.report.started_at for one in mine).isoformat("T", "seconds"))
        _count(suite, mine)
        for one in mine:
            _case(suite, one)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _count(element: ET.Element, results: Sequence[CallResult]) -> None:
    element.set("tests", str(len(results)))
    element.set("failures", str(sum(one.failed for one in results)))
    element.set("errors", "0")
    element.set("skipped", "0")
    element.set("time", f"{sum(one.seconds for one in results):.3f}")


def _case(suite: ET.Element, one: CallResult) -> None:
    case = ET.SubElement(suite, "testcase", name=_xml(one.call.name))
    case.set("classname", _xml(one.call.suite))
    case.set("time", f"{one.seconds:.3f}")
    failed = [str(verdict) for verdict in one.verdicts if verdict.mark is Mark.FAILED]
    if failed:
        failure = ET.SubElement(case, "failure", type="assertion", message=_xml(failed[0]))
        failure.text = _xml("\n".join(failed))
    lines = [f"{verdict.mark}  {verdict}" for verdict in one.verdicts]
    lines += [f"{said.who}: {said.text}" for said in one.evidence.both_sides()]
    if one.sound is not None:
        lines.append(f"sound: {one.sound}")
    ET.SubElement(case, "system-out").text = _xml("\n".join(lines))


def _xml(text: str) -> str:
    return _NOT_IN_XML.sub("�", text)


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;
color:#1c1c1c;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin:0}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;overflow-wrap:anywhere;padding:.2rem .6rem .2rem 0;vertical-align:top}
th{font-weight:600}td.mark+td,.t+td{white-space:nowrap}td.mark+td+td{min-width:10rem}
section{border-top:1px solid #ccc;padding:1rem 0}.t{color:#555;white-space:nowrap;text-align:right;
font-variant-numeric:tabular-nums}.passed{color:#176317}.failed{color:#a11313}.skipped{color:#6b5500}
.mark{font-weight:600;white-space:nowrap}audio{width:100%;margin:.5rem 0}svg{width:100%;height:46px}
summary{cursor:pointer;padding:.3rem 0}
"""


def page(results: Sequence[CallResult], folder: Path) -> str:
    """Return an HTML page with all results, for a file in ``folder``.

    Recordings are linked relative to ``folder``; nothing is loaded from elsewhere.
    """
    failed = sum(one.failed for one in results)
    rows = "".join(
        f'<tr><td>{_mark(one.failed)}</td><td><a href="#call-{one.call.number}">'
        f"{escape(one.call.suite)}: {escape(one.call.name)}</a></td>"
        f'<td class="t">{one.seconds:.1f} s</td></tr>'
        for one in results
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; media-src 'self' file:\">"
        f"<title>{failed} of {len(results)} calls failed</title><style>{_STYLE}</style></head>"
        "<body>"
        f"<h1>{len(results) - failed} of {len(results)} calls passed</h1><table>{rows}</table>"
        f"{''.join(_section(one, folder) for one in results)}</body></html>\n"
    )


def _section(one: CallResult, folder: Path) -> str:
    report = one.report
    rows = "".join(_verdict_row(verdict) for verdict in one.verdicts)
    sound = ""
    if one.sound is not None:
        source = quote(os.path.relpath(one.sound, folder))
        sound = (
            f'<audio controls preload="metadata" src="{source}" '
            f'aria-label="Recording of {escape(one.call.name)}"></audio>'
            "<p>Caller left, and above in the picture; agent right, and below: "
            f'<a href="{source}">{escape(one.sound.name)}</a></p>'
        )
    who = f"{escape(one.call.caller_id)} to {escape(report.uri)}"
    facts = f"{who}, {escape(report.codec or 'no media')}, {one.seconds:.1f} s"
    return (
        f'<section id="call-{one.call.number}"><h2>{_mark(one.failed)} '
        f"{escape(one.call.suite)}: {escape(one.call.name)}</h2><p>{facts}</p>"
        f"<table>{rows}</table>{sound}{_lanes(one)}"
        f"<details{' open' if one.failed else ''}><summary>Steps</summary>"
        f"<table>{''.join(_moments(one))}</table></details>{_transcript(one)}</section>"
    )


def _mark(failed: bool) -> str:
    return f'<span class="mark {"failed" if failed else "passed"}">{"✗" if failed else "✓"}</span>'


def _verdict_row(one: Verdict) -> str:
    return (
        f'<tr><td class="mark {one.mark}">{one.mark}</td><td>{escape(one.name)}</td>'
        f"<td>{escape(one.wanted)}</td><td>{escape(one.found)}</td></tr>"
    )


def _moments(one: CallResult) -> Iterator[str]:
    """Yield table rows of SIP messages, steps and sound, by time since the INVITE."""
    report = one.report
    media = report.media_ms or report.answered_ms or 0.0
    rows: list[tuple[float, str, str]] = [(0.0, "caller", f"INVITE {report.uri}")]
    for at, text in ((report.ringing_ms, "ringing"), (report.answered_ms, "200 OK")):
        rows += [] if at is None else [(at, "agent", text)]
    for step in report.steps:
        late = "" if step.done else ", not done"
        rows.append((step.began_ms, "caller", f"{step.step} ({step.took_ms:.0f} ms{late})"))
    for span in report.heard:
        rows.append((media + span.from_ms, "agent", f"heard for {span.to_ms - span.from_ms} ms"))
    for target in report.refers:
        rows.append((report.ended_ms or 0.0, "agent", f"REFER to {target}"))
    if report.ended_ms is not None and report.end is not None:
        end = report.end
        who = "caller" if end.by == "caller" else "agent"
        rows.append((report.ended_ms, who, f"{end.method or 'end'}: {end.code} {end.reason}"))
    for at, who, text in sorted(rows, key=lambda row: row[0]):
        yield (
            f'<tr><td class="t">{at / 1000:.2f} s</td><td>{who}</td><td>{escape(text)}</td></tr>'
        )


def _lanes(one: CallResult) -> str:
    """Return an SVG of when each side was heard: caller above, agent below."""
    length = one.report.recorded_ms
    if not length:
        return ""

    def bars(spans: Sequence[Span], top: int, colour: str) -> str:
        return "".join(
            f'<rect x="{1000 * span.from_ms / length:.1f}" y="{top}" height="18" fill="{colour}" '
            f'width="{max(1.0, 1000 * (span.to_ms - span.from_ms) / length):.1f}"/>'
            for span in spans
        )

    return (
        '<svg viewBox="0 0 1000 46" preserveAspectRatio="none" role="img" aria-label="Who spoke '
        f'when, {length / 1000:.1f} s: caller above, agent below"><rect width="1000" height="46" '
        f'fill="#f2f2f2"/>{bars(one.report.spoken, 3, "#2a6fb0")}'
        f"{bars(one.report.heard, 25, '#b0602a')}</svg>"
    )


def _transcript(one: CallResult) -> str:
    said: Sequence[Said] = one.evidence.transcript or ()
    if not said:
        return f"<p>No transcript: {escape(one.evidence.no_words)}</p>"
    rows = "".join(
        f'<tr><td class="t">{"" if line.at_ms is None else f"{line.at_ms / 1000:.1f} s"}</td>'
        f"<td>{escape(line.who)}</td><td>{escape(line.text)}</td></tr>"
        for line in said
    )
    return (
        f"<details open><summary>Transcript, by {escape(one.evidence.words_by)}</summary>"
        f"<table>{rows}</table></details>"
    )
