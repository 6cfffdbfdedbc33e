# SPDX-License-Identifier: GPL-2.0-or-later
"""The floor: pjsip carrying calls by itself, each looped back to its caller in C.

``python -m tests.load.floor CALLS PORT PORTS`` answers that many calls, with RTP on so many ports
from the given one, and prints ``port N`` of its SIP on standard output. No Python runs for a frame:
what this costs is what pjsip's RTP, jitter buffer, G.711 and conference bridge cost, with the
settings that the gateway gives them.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import pjsua2 as pj

_POLL_MS = 10


class _Call(pj.Call):  # type: ignore[misc]
    def __init__(self, account: _Account, call_id: int) -> None:
        super().__init__(account, call_id)
        self.account = account

    def onCallMediaState(self, _prm: Any) -> None:  # noqa: N802
        media = self.getAudioMedia(-1)
        media.startTransmit(media)

    def onCallState(self, _prm: Any) -> None:  # noqa: N802
        if self.getInfo().state == pj.PJSIP_INV_STATE_DISCONNECTED:
            self.account.live -= 1


class _Account(pj.Account):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.live = 0

    def onIncomingCall(self, prm: Any) -> None:  # noqa: N802
        call = _Call(self, prm.callId)
        self.calls.append(call)  # kept to the end of the process: its destructor has no work
        self.live += 1
        answer = pj.CallOpParam()
        answer.statusCode = 200
        call.answer(answer)


def main() -> None:
    """Serve until SIGTERM."""
    calls, first_port, ports = (int(argument) for argument in sys.argv[1:4])
    endpoint = pj.Endpoint()
    endpoint.libCreate()
    config = pj.EpConfig()
    config.logConfig.level = config.logConfig.consoleLevel = 1
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = False
    config.uaConfig.maxCalls = 65535
    media = config.medConfig
    media.clockRate = media.sndClockRate = 8000
    media.channelCount = 1
    media.audioFramePtime = media.ptime = 20
    media.noVad = True
    media.ecTailLen = 0
    media.sndAutoCloseTime = -1
    media.maxMediaPorts = 2 * calls + 64
    media.jbInit, media.jbMinPre, media.jbMaxPre, media.jbMax = 40, 20, 240, 240
    endpoint.libInit(config)
    endpoint.audDevManager().setNullDev()
    transport = pj.TransportConfig()
    transport.boundAddress = "127.0.0.1"
    identity = endpoint.transportCreate(pj.PJSIP_TRANSPORT_UDP, transport)
    codecs = endpoint.codecEnum2()
    for index in range(len(codecs)):
        name = str(codecs[index].codecId)
        endpoint.codecSetPriority(name, 200 if name.startswith("PCMU") else 0)
    endpoint.libStart()
    address = str(endpoint.transportGetInfo(identity).localAddress)
    account_config = pj.AccountConfig()
    account_config.idUri = f"sip:floor@{address}"
    transports = account_config.mediaConfig.transportConfig
    transports.boundAddress = "127.0.0.1"
    transports.port, transports.portRange = first_port, ports - 1
    account = _Account()
    account.create(account_config, True)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    print(f"port {address.rpartition(':')[2]}", flush=True)
    while not stopping:
        endpoint.libHandleEvents(_POLL_MS)
    endpoint.hangupAllCalls()
    for _ in range(200):
        if account.live == 0:
            break
        endpoint.libHandleEvents(_POLL_MS)
    endpoint.libDestroy()
    for held in (*account.calls, account, endpoint):
        held.this.disown()


if __name__ == "__main__":
    main()
