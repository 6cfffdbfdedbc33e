# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway, with a defect on demand: ``faulty_gateway.py run -c …``.

While the file ``fault`` beside the configuration names one of :data:`PLACES`, what stands there
raises, each time that it is run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PLACES = {
    # before there is a bridge
    "facts of an INVITE": "gateway.sip.incoming:Incoming._facts_of",
    "record of an INVITE": "gateway.app.admission:record_of",
    "route": "gateway.dialplan:Dialplan.match",
    "budget": "gateway.app.registry:CallRegistry.spent",
    "plans": "gateway.app.admission:plans",
    "bridge": "gateway.bridge.call_controller:CallController.__init__",
    # the start
    "count": "gateway.app.registry:CallRegistry.begin",
    "watch": "gateway.app.registry:CallRegistry._watch",
    "take the leg": "gateway.bridge.legs:Legs.take",
    "machine's start": "gateway.call.machine:CallMachine.start",
    "ring": "gateway.sip.leg:Leg.ring",
    "open a session": "gateway.bridge.sessions:Sessions._open",
    # the session
    "set-up": "gateway.bridge.sessions:open_with_retry",
    "probe's knowledge": "gateway.app.health_checks:HealthChecker.met",
    "send": "gateway.realtime.session:Session.send",
    "count of usage": "gateway.billing:Account.take",
    "close a session": "gateway.bridge.sessions:Sessions._release",
    # the leg
    "answer": "gateway.sip.leg:Leg.answer",
    "security": "gateway.bridge.legs:Legs.security",
    "quality": "gateway.sip.rtp:CallQuality.add",
    # audio
    "media": "gateway.bridge.media:CallMedia._pause",
    "ear": "gateway.bridge.media:InboundAudioAnalyzer.feed",
    "append": "gateway.bridge.sessions:Sessions.append",
    "play": "gateway.bridge.media:CallMedia._play",
    # time, and the end
    "deadline": "gateway.call.machine:CallMachine.deadline",
    "settle": "gateway.call.machine:CallMachine._after_input",
    "end": "gateway.call.machine:CallMachine._end_call",
    "finish": "gateway.call.machine:CallMachine._finish",
    "hang up": "gateway.sip.leg:Leg.hang_up",
    "the legs' figures": "gateway.bridge.legs:Legs.finish",
    "the sessions' figures": "gateway.bridge.sessions:Sessions.finish",
    "wait closed": "gateway.bridge.call_controller:CallController.wait_closed",
    # and whatever is told to the machine
    **{
        f"input {name}": f"gateway.call.machine:CallMachine.handle:{name}"
        for name in (
            "SessionReady",
            "MediaUp",
            "Confirmed",
            "ServerEventReceived",
            "RtpStats",
            "PlayoutStarted",
            "PlayoutDrained",
            "LegEnded",
            "Tick",
            "Confirmed,InternalError",
        )
    },
}
"""What is made to raise, by its name in a test."""

PARTS = {
    "exit of the SIP thread": "gateway.sip.stack:Stack.poll",
    "media clock": "gateway.bridge.media:MediaPump.serve",
    "cost ledger": "gateway.billing.ledger:LedgerStore._exchange",
    "move of audio": "gateway.bridge.media:CallMedia._move",
}
"""What stands for a part of the process that ends alone."""


def found(place: str) -> tuple[Any, str, Any, str]:
    """What has a place, its name there, what it is, and the inputs that it is about.

    Raises ``LookupError`` or ``AttributeError`` for one that there is not.
    """
    module, _, rest = place.partition(":")
    path, _, kinds = rest.partition(":")
    owner: Any = import_module(module)
    *outer, last = path.split(".")
    for step in outer:
        owner = getattr(owner, step)
    return owner, last, owner.__dict__[last], kinds


def install(file: Path) -> None:
    """Put a look at ``file`` before everything in :data:`PLACES`."""

    def armed(name: str) -> bool:
        try:
            return file.read_text() == name
        except OSError:
            return False

    def failing(name: str, function: Callable[..., Any], kinds: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if (not kinds or type(args[1]).__name__ in kinds.split(",")) and armed(name):
                raise (SystemExit if name.startswith("exit") else ZeroDivisionError)(name)
            return function(*args, **kwargs)

        return run

    for name, place in {**PLACES, **PARTS}.items():
        owner, last, there, kinds = found(place)
        if isinstance(there, property):
            assert there.fget is not None
            setattr(owner, last, property(failing(name, there.fget, "")))
        else:
            setattr(owner, last, failing(name, there, kinds))


if __name__ == "__main__":
    install(Path(sys.argv[sys.argv.index("-c") + 1]).with_name("fault"))
    from gateway.app import tracing

    tracing.QUEUE_CALLS = 1  # so that few calls fill the queue
    from gateway.cli import main

    main()
