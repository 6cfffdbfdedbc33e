"""What functions outside do to the call that they run for."""

from __future__ import annotations

from gateway.call.ending import Why
from gateway.call.outputs import Output
from gateway.call.talk import Parting, Talk
from gateway.tools.acts import Act, EndCall, Say, Tell, TransferTo


def carry_out(act: Act, talk: Talk, now: float) -> list[Output]:
    """Do it, unless the call is being left already."""
    if talk.parting is not None:
        return []
    note = talk.journal.note(now, "act", "info", act=type(act).__name__)
    match act:
        case Say(words):
            return [note, *talk.say(words, now)]
        case Tell(text):
            return [note, *talk.tell(text)]
        case TransferTo(destination, words):
            talk.part(Parting(Why.APPLICATION, "by a function", words, transfer_to=destination))
        case EndCall(words):
            talk.part(Parting(Why.APPLICATION, "by a function", words))
    return [note]
