# SPDX-License-Identifier: GPL-2.0-or-later
"""Tries whatever pjsua2 this interpreter imports: says what it is, and makes a call to itself.

Exits with 1 and a sentence when a part does not work. ``--json`` prints what it found as JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pjsua2 as pj
from pjsua2 import _pjsua2

_DEADLINE_SECONDS = 20.0
_FRAME_BYTES = 320  # 20 ms of 16 bit samples at 8000 Hz


class Port(pj.AudioMediaPort):  # type: ignore[misc]
    """Sends one constant and remembers the last frame it got."""

    def __init__(self, name: str, sample: int) -> None:
        super().__init__()
        self.sent = sample.to_bytes(2, "little", signed=True) * (_FRAME_BYTES // 2)
        self.heard = bytearray(_FRAME_BYTES)
        self.frames = 0
        fmt = pj.MediaFormatAudio()
        fmt.init(pj.PJMEDIA_FORMAT_PCM, 8000, 1, 20000, 16)
        self.createPort(name, fmt)

    def onFrameRequested(self, frame: Any) -> None:  # noqa: N802
        frame.type = pj.PJMEDIA_FRAME_TYPE_AUDIO
        frame.buf.assign_from_bytes(self.sent)
        frame.size = _FRAME_BYTES

    def onFrameReceived(self, frame: Any) -> None:  # noqa: N802
        if frame.type == pj.PJMEDIA_FRAME_TYPE_AUDIO and len(frame.buf) == _FRAME_BYTES:
            frame.buf.copy_to_bytearray(self.heard)
            self.frames += 1


class Call(pj.Call):  # type: ignore[misc]
    """A call joined to its port as soon as it has media."""

    def __init__(self, account: Any, port: Port, call_id: int = pj.PJSUA_INVALID_ID) -> None:
        super().__init__(account, call_id)
        self.port = port
        self.over = False

    def onCallMediaState(self, _prm: Any) -> None:  # noqa: N802
        media = self.getAudioMedia(-1)
        media.startTransmit(self.port)
        self.port.startTransmit(media)

    def onCallState(self, _prm: Any) -> None:  # noqa: N802
        self.over = self.getInfo().state == pj.PJSIP_INV_STATE_DISCONNECTED


class Account(pj.Account):  # type: ignore[misc]
    """Answers with 200."""

    def __init__(self, port: Port) -> None:
        super().__init__()
        self.port = port
        self.calls: list[Call] = []

    def onIncomingCall(self, prm: Any) -> None:  # noqa: N802
        call = Call(self, self.port, prm.callId)
        self.calls.append(call)
        answer = pj.CallOpParam()
        answer.statusCode = 200
        call.answer(answer)


def resident_kib() -> int:
    """This process's resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def run() -> dict[str, Any]:
    """Everything; raises SystemExit with a sentence when something does not work."""
    imported = resident_kib()
    endpoint = pj.Endpoint()
    endpoint.libCreate()
    config = pj.EpConfig()
    config.logConfig.level = config.logConfig.consoleLevel = 1
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = False
    config.uaConfig.maxCalls = 1_000_000  # cut to the compiled limit
    config.medConfig.clockRate = config.medConfig.sndClockRate = 8000
    config.medConfig.noVad = True
    endpoint.libInit(config)
    transport = pj.TransportConfig()
    transport.boundAddress = "127.0.0.1"
    port = endpoint.transportGetInfo(
        endpoint.transportCreate(pj.PJSIP_TRANSPORT_UDP, transport)
    ).localAddress.split(":")[1]
    endpoint.libStart()
    endpoint.audDevManager().setNullDev()
    found: dict[str, Any] = {
        "version": endpoint.libVersion().full,
        "module": _pjsua2.__file__,
        "max_calls": pj.BUILD["max_calls"],
        "max_media_ports": int(config.medConfig.maxMediaPorts),
        "codecs": [codec.codecId for codec in list(endpoint.codecEnum2())],
        "tls": pj.nativeTlsLibrary(),
        "imported_kib": imported,
        "started_kib": resident_kib(),
    }
    for codec in found["codecs"]:
        endpoint.codecSetPriority(codec, 200 if codec.startswith("PCMU") else 0)
    found["call"] = _call_self(endpoint, port)
    found["after_call_kib"] = resident_kib()
    endpoint.libDestroy()
    return found


def _call_self(endpoint: Any, sip_port: str) -> str:
    caller_port, callee_port = Port("caller", 4000), Port("callee", -900)
    account = Account(callee_port)
    config = pj.AccountConfig()
    config.idUri = f"sip:smoke@127.0.0.1:{sip_port}"
    config.mediaConfig.transportConfig.boundAddress = "127.0.0.1"
    account.create(config)
    call = Call(account, caller_port)
    call.makeCall(f"sip:self@127.0.0.1:{sip_port}", pj.CallOpParam(True))
    deadline = time.monotonic() + _DEADLINE_SECONDS

    def until(reached: Any, what: str) -> None:
        while not reached():
            if time.monotonic() > deadline:
                raise SystemExit(f"pjsua2: the call to itself never got as far as {what}")
            endpoint.libHandleEvents(10)

    def near(port: Port, sample: int) -> bool:
        # G.711 keeps a constant within its step, 1/16 of it at most.
        got = int.from_bytes(port.heard[-2:], "little", signed=True)
        return port.frames > 5 and abs(got - sample) <= abs(sample) // 16

    until(lambda: near(caller_port, -900) and near(callee_port, 4000), "audio both ways")
    call.hangup(pj.CallOpParam())
    until(lambda: call.over and all(other.over for other in account.calls), "its end")
    account.calls.clear()
    account.shutdown()
    return "audio both ways"


def main() -> None:
    """Prints what was found."""
    found = run()
    if "--json" in sys.argv[1:]:
        print(json.dumps(found))
        return
    print(f"pjsua2: pjproject {found['version']}, {found['max_calls']} calls, {found['tls']}")
    print(f"pjsua2: codecs {' '.join(found['codecs'])}; call to itself: {found['call']}")
    print(f"pjsua2: resident {found['imported_kib']} KiB imported, {found['started_kib']} started")


if __name__ == "__main__":
    main()
