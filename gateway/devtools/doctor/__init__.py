# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway doctor``: check host, pjsua2 build, realtime servers and trunks.

Nothing is changed and no call placed but by ``--trunk``. ``examine`` asks the kernel, and pjsua2 in
a process of its own; ``network`` binds ports for a moment and opens a session at each realtime
server; ``trunks`` resolves each trunk, sends OPTIONS and logs in. Of ``--trunk``, ``trunk_call``
registers and calls, and ``trunk_findings`` judges what came of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.text import printable


class Verdict(StrEnum):
    """``BAD`` keeps calls from working; ``WARN`` may be meant so, or will hurt under load."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of the doctor. ``advice`` is empty where there is nothing to do."""

    verdict: Verdict
    subject: str
    fact: str
    advice: str = ""
    code: str = ""
    """A fixed name for programs, as ``rtp_source``; findings of ``--trunk`` have one."""
    evidence: tuple[str, ...] = ()
    """SIP messages, without digests and keys, and counts of RTP."""

    def of(self, code: str, *evidence: str) -> Finding:
        """Return a copy with its code for programs, and the evidence."""
        return replace(self, code=code, evidence=evidence)


def ok(subject: str, fact: str) -> Finding:
    return Finding(Verdict.OK, subject, fact)


def warn(subject: str, fact: str, advice: str) -> Finding:
    return Finding(Verdict.WARN, subject, fact, advice)


def bad(subject: str, fact: str, advice: str) -> Finding:
    return Finding(Verdict.BAD, subject, fact, advice)


def lines(findings: Iterable[Finding]) -> list[str]:
    """Return the report for a terminal, with control characters in it escaped."""
    found = list(findings)
    width = max((len(finding.subject) for finding in found), default=0)
    shown: list[str] = []
    for finding in found:
        shown.append(f"{finding.verdict:<4}  {finding.subject:<{width}}  {printable(finding.fact)}")
        if finding.advice:
            shown.append(f"{'':<4}  {'':<{width}}  -> {printable(finding.advice)}")
        for text in finding.evidence:
            shown += ["", *(f"      | {printable(line)}".rstrip() for line in text.split("\n"))]
        if finding.evidence:
            shown.append("")
    return shown
