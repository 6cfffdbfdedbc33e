# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demo is played with: files for emulator, gateway and caller, written to its folder.

They stay there, to be read and changed: each works with the command of its name.
"""

from __future__ import annotations

import json
from pathlib import Path

from gateway.devtools.scripted_caller.script import Script, load_script

GREETING = "Good morning, reception. How can I help?"
LONG_ANSWER = (
    "Yes, we do. There is a double room with a view of the lake, at one hundred and twenty a "
    "night, breakfast included. Then there is a family room on the first floor, with a balcony "
    "and a small kitchen. And under the roof there is a quiet single room, over the garden."
)
SECOND_ANSWER = "Gladly, the room with the view. Please key in your phone extension, then hash."
DIGITS = "42"

EMULATOR = f"""\
# gateway emulator --script emulator.toml --record events
# No model is behind it: the second and the third answer are written here, the others follow the
# emulator's rules (say the greeting that is asked for, read digits back, say goodbye on 0).

# One delta for each 20 ms, so that the event log tells of every frame what was in it.
chunk_ms = 20

[[answers]]
kind = "conversation"

[[answers]]
kind = "say"
text = {json.dumps(LONG_ANSWER)}

[[answers]]
kind = "say"
text = {json.dumps(SECOND_ANSWER)}

[[answers]]
kind = "conversation"
"""

GATEWAY = """\
# gateway run -c gateway.toml

[sip]
listen = ["udp:127.0.0.1:0"]           # any free port; the log says which
rtp_ports = [22000, 23999]
max_calls = 4

[realtime]
url = {url}                            # the emulator of this demo
model = "gpt-realtime-2.1"

[dialplan]
folder = "dialplans"

[records]
folder = "../records"

[log]
format = "json"
"""

DIALPLAN = f"""\
[[route]]
name = "reception"
to = "^100$"

[route.session]
instructions = "You are the receptionist of a small hotel. Answer in one or two short sentences."
audio.output.voice = "marin"

[route.greeting]
say = {json.dumps(GREETING)}
"""

CALLER = f"""\
# gateway test-call sip:100@127.0.0.1:PORT --script caller.toml --record-both call.wav

max_seconds = 90

[[step]]
do = "wait_answer"
within = 10

[[step]]
do = "wait_speech"
note = "listens to the greeting"
within = 10

[[step]]
do = "wait_silence"
note = "waits for its end"
ms = 800
within = 15

[[step]]
do = "say"
note = "asks for a room"
text = "Hello. Do you have a room for two nights, from Friday?"

[[step]]
do = "wait_speech"
note = "waits for the answer"
within = 10

[[step]]
do = "wait"
note = "listens to it for four seconds"
seconds = 4.0

[[step]]
do = "say"
note = "interrupts"
text = "Thank you. I take the first one."

[[step]]
do = "wait_silence"
note = "hears that the agent has stopped"
ms = 300
within = 5

[[step]]
do = "wait_speech"
note = "waits for the next answer"
within = 10

[[step]]
do = "wait_silence"
note = "listens to it to its end"
ms = 900
within = 20

[[step]]
do = "digits"
note = "presses {DIGITS}#"
keys = "{DIGITS}#"

[[step]]
do = "wait_speech"
note = "waits for the digits to be read back"
within = 10

[[step]]
do = "wait_silence"
note = "listens to that"
ms = 900
within = 15

[[step]]
do = "digits"
note = "presses 0#, to be told goodbye"
keys = "0#"

[[step]]
do = "expect_end"
note = "hears the goodbye, and that the agent hangs up"
code = 200
within = 20
"""


class Stage:
    """The demo's files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config"
        self.emulator_script = self.config / "emulator.toml"
        self.gateway_config = self.config / "gateway.toml"
        self.caller_script = self.config / "caller.toml"
        self.events = folder / "events"
        self.records = folder / "records"
        self.record = folder / "record.json"
        self.report = folder / "report.json"
        self.recording = folder / "call.wav"
        self.heard = folder / "heard.alaw"
        self.picture = folder / "timeline.png"
        self.text = folder / "timeline.txt"
        self.checks = folder / "checks.json"

    def prepare(self) -> Script:
        """Write the files that need no address, and take away what an earlier demo left.

        Returns the caller's script. Raises OSError.
        """
        dialplans = self.config / "dialplans"
        for folder in (dialplans, self.events, self.records):
            folder.mkdir(parents=True, exist_ok=True)
        written = (self.record, self.report, self.recording, self.heard, self.picture, self.text)
        sessions, calls = self.events.glob("sess_*"), self.records.glob("*.json")
        for old in (*written, self.checks, *sessions, *calls):
            old.unlink(missing_ok=True)
        self.emulator_script.write_text(EMULATOR, "utf-8")
        (dialplans / "10-reception.toml").write_text(DIALPLAN, "utf-8")
        self.caller_script.write_text(CALLER, "utf-8")
        return load_script(self.caller_script)

    def point_at(self, url: str) -> None:
        """Write the gateway's configuration for the emulator at ``url``. Raises OSError."""
        self.gateway_config.write_text(GATEWAY.format(url=json.dumps(url)), "utf-8")
