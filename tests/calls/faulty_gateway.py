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
    "facts of an INVITE": "gateway.sip.incoming:Incoming.facts_of",
    "record of an INVITE": "gateway.service:record_of",
    "route": "gateway.dialplan:Dialplan.match",
    "budget": "gateway.service:Service.spent",
    "plans": "gateway.service:plans",
    "bridge": "gateway.bridge:Bridge.__init__",
    # the start
    "count": "gateway.service:Service.begin",
    "watch": "gateway.service:Service._watch",
    "take the leg": "gateway.legs:Legs.take",
    "machine's start": "gateway.call.machine:CallMachine.start",
    "ring": "gateway.sip.leg:Leg.ring",
    "open a session": "gateway.sessions:Sessions._open",
    # the session
    "set-up": "gateway.sessions:open_with_retry",
    "probe's knowledge": "gateway.probing:Prober.met",
    "send": "gateway.realtime.session:Session.send",
    "count of usage": "gateway.cost.account:Account.take",
    "close a session": "gateway.sessions:Sessions._let_go",
    # the leg
    "answer": "gateway.sip.leg:Leg.answer",
    "security": "gateway.legs:Legs.security",
    "quality": "gateway.call.quality:QualityOfCall.add",
    # audio
    "media": "gateway.bridge:Bridge._stand_still",
    "ear": "gateway.ear:Ear.feed",
    "append": "gateway.sessions:Sessions.append",
    "play": "gateway.bridge:Bridge._play",
    # time, and the end
    "deadline": "gateway.call.machine:CallMachine.deadline",
    "settle": "gateway.call.machine:CallMachine._settle",
    "end": "gateway.call.machine:CallMachine._end",
    "finish": "gateway.call.machine:CallMachine._finish",
    "hang up": "gateway.sip.leg:Leg.hang_up",
    "the legs' figures": "gateway.legs:Legs.finish",
    "the sessions' figures": "gateway.sessions:Sessions.finish",
    "gone": "gateway.bridge:Bridge.gone",
    # and whatever is told to the machine
    **{
        f"input {name}": f"gateway.call.machine:CallMachine.handle:{name}"
        for name in (
            "SessionUp",
            "MediaUp",
            "Confirmed",
            "ServerSaid",
            "RtpCounted",
            "PlayoutStarted",
            "PlayoutDrained",
            "LegEnded",
            "Tick",
            "Confirmed,Faulted",
        )
    },
}
"""What is made to raise, by its name in a test."""

PARTS = {
    "exit of the SIP thread": "gateway.sip.agent:UserAgent._poll",
    "media clock": "gateway.pump:MediaPump.wake",
    "cost ledger": "gateway.cost.keeper:Keeper._look",
}
"""What stands for a part of the process that ends alone."""


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
        module, _, rest = place.partition(":")
        path, _, kinds = rest.partition(":")
        owner: Any = import_module(module)
        *outer, last = path.split(".")
        for step in outer:
            owner = getattr(owner, step)
        found = owner.__dict__[last]
        if isinstance(found, property):
            assert found.fget is not None
            setattr(owner, last, property(failing(name, found.fget, "")))
        else:
            setattr(owner, last, failing(name, found, kinds))


if __name__ == "__main__":
    install(Path(sys.argv[sys.argv.index("-c") + 1]).with_name("fault"))
    from gateway.cli import main

    main()
