# SPDX-License-Identifier: GPL-2.0-or-later
"""SIPp as the mass of callers: real SIP, real RTP, and its own count of what failed."""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import marks
from .worker import Failed

SOUND_SECONDS = 8

_INVITE = """\
<send retrans="500" start_rtd="1"><![CDATA[
INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:load@[local_ip]:[local_port]>;tag=[pid]T[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:load@[local_ip]:[local_port]>
Max-Forwards: 70
Content-Type: application/sdp
Content-Length: [len]

v=0
o=- 1 1 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [rtpstream_audio_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000
a=ptime:20
]]></send>
<recv response="100" optional="true"/>
<recv response="180" optional="true"/>
<recv response="200" rtd="1" rrs="true"/>
<send><![CDATA[
ACK [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:load@[local_ip]:[local_port]>;tag=[pid]T[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
[routes]
Max-Forwards: 70
Content-Length: 0

]]></send>
"""

_BYE = """\
<send retrans="500"><![CDATA[
BYE [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:load@[local_ip]:[local_port]>;tag=[pid]T[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
[routes]
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200" crlf="true"/>
"""

_AWAIT_BYE = """\
<recv request="BYE"/>
<send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

]]></send>
"""


def _scenario(name: str, *parts: str) -> str:
    head = '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<!DOCTYPE scenario SYSTEM "sipp.dtd">\n'
    return f'{head}<scenario name="{name}">\n{"".join(parts)}</scenario>\n'


def _speak(sound: Path) -> str:
    return f'<nop><action><exec rtp_stream="{sound},-1,0,PCMU/8000"/></action></nop>\n'


def holding(sound: Path, codec: str = "pcmu") -> str:
    """Calls that speak until the other side hangs up."""
    parts: tuple[str, ...] = _INVITE, _speak(sound), _AWAIT_BYE
    if codec == "g722":
        parts = tuple(
            part.replace("RTP/AVP 0", "RTP/AVP 9")
            .replace("rtpmap:0 PCMU", "rtpmap:9 G722")
            .replace("0,PCMU/8000", "9,G722/8000")
            for part in parts
        )
    return _scenario("holding", *parts)


def brief(milliseconds: int) -> str:
    """Calls without audio that hang up after so long."""
    return _scenario("brief", _INVITE, f'<pause milliseconds="{milliseconds}"/>\n', _BYE)


def hangup(sound: Path, waits_ms: Sequence[int]) -> str:
    """Calls that hang up after one of ``waits_ms``, drawn by lot, unless the other side does first.

    BYEs that cross each other end well, as RFC 3261 section 15 has it.
    """
    lots = "".join(
        f'<nop next="w{n}" chance="{1 / (len(waits_ms) - n):.4f}"/>\n'
        for n in range(len(waits_ms) - 1)
    )
    waits = "".join(
        f'<label id="w{n}"/>\n<recv request="BYE" timeout="{wait}" ontimeout="bye" next="met"/>\n'
        for n, wait in reversed(list(enumerate(waits_ms)))
    )
    # Asked only when a BYE came: its answer is the same wherever that happens.
    answer = _AWAIT_BYE.split("\n", 1)[1]
    crossing = (
        '<recv request="BYE" optional="true" next="crossed"/>\n'
        '<recv response="481" optional="true" next="end"/>\n<recv response="200" next="end"/>\n'
    )
    bye = _BYE.rsplit("<recv", 1)[0]
    return _scenario(
        "hangup",
        _INVITE,
        _speak(sound),
        lots,
        waits,
        '<label id="bye"/>\n',
        bye,
        crossing,
        '<label id="crossed"/>\n',
        answer,
        '<recv response="481" optional="true" next="end"/>\n<recv response="200" next="end"/>\n',
        '<label id="met"/>\n',
        answer,
        '<label id="end"/>\n<nop/>\n',
    )


def sound(folder: Path, codec: str = "pcmu") -> Path:
    """A file of G.711, or of G.722, to speak."""
    path = folder / f"speech.{codec}"
    if not path.exists():
        speaker = marks.G722() if codec == "g722" else marks
        path.write_bytes(speaker.speech(50 * SOUND_SECONDS))
    return path


@dataclass(frozen=True, slots=True)
class Counts:
    """SIPp's own statistics at one moment."""

    created: int
    succeeded: int
    failed: int
    live: int


class Callers:
    """A running SIPp.

    Args:
        folder: where its files go.
        target: whom it calls.
        user: the user part of the URI.
        scenario: what each call does.
        calls: how many in all.
        rate: new ones a second.
        limit: how many at the same time.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        target: tuple[str, int],
        user: str,
        scenario: str,
        *,
        calls: int,
        rate: float,
        limit: int,
    ) -> None:
        program = shutil.which("sipp")
        if program is None:
            raise Failed("sipp is not installed (Debian's sip-tester)")
        self.name = name
        self._folder = folder
        script = folder / f"{name}.xml"
        script.write_text(scenario)
        self._stat = folder / f"{name}.csv"
        low = 21000 + 2 * random.randrange(2000)
        tenths = max(1, round(rate * 10))
        arguments = [
            program, f"{target[0]}:{target[1]}", "-sf", str(script), "-s", user,
            "-i", "127.0.0.1", "-mi", "127.0.0.1", "-m", str(calls), "-l", str(limit),
            "-r", str(tenths), "-rp", "10000", "-nostdin", "-nd", "-skip_rlimit",
            "-mp", str(low),
            "-trace_stat", "-stf", str(self._stat), "-fd", "1",
            "-trace_rtt", "-rtt_freq", "1", "-trace_err", "-timeout", "7200",
        ]  # fmt: skip
        with (folder / f"{name}.out").open("wb") as out:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def counts(self) -> Counts:
        """Its last statistics; they are written every second and at its end."""
        try:
            with self._stat.open(encoding="ascii", errors="replace") as file:
                rows = [row for row in csv.reader(file, delimiter=";") if len(row) > 10]
        except OSError:
            rows = []
        if len(rows) < 2:
            return Counts(0, 0, 0, 0)
        last = dict(zip(rows[0], rows[-1], strict=False))
        return Counts(
            created=int(last["TotalCallCreated"]),
            succeeded=int(last["SuccessfulCall(C)"]),
            failed=int(last["FailedCall(C)"]),
            live=int(last["CurrentCall"]),
        )

    def setup_ms(self) -> list[float]:
        """INVITE to 200 of each call, ms."""
        found: list[float] = []
        for path in self._folder.glob(f"{self.name}_*_rtt.csv"):
            with path.open(encoding="ascii", errors="replace") as file:
                for row in csv.reader(file, delimiter=";"):
                    if len(row) >= 3 and row[2].strip("'\"") == "1":
                        found.append(float(row[1]))
        return found

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False when it did not come in time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, seconds: float = 10.0) -> None:
        """Its calls should be over: let it write its statistics, or end it."""
        if not self.wait(seconds):
            self.process.terminate()
            if not self.wait(5.0):
                self.process.kill()
                self.process.wait()
        time.sleep(0.05)
