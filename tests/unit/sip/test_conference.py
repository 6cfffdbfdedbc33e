# SPDX-License-Identifier: GPL-2.0-or-later
"""Who hears whom in the conference bridge; players of sounds that could not be made at first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pjsua2 as pj
import pytest
from structlog.testing import capture_logs

from gateway.audio import Codec
from gateway.audio.sounds import ECHO, SoundError
from gateway.sip import conference
from gateway.sip.call_audio import CallAudio, Connections, Port, PortPool, Source, Uplink
from gateway.sip.conference import ConferenceLink, Sounds


class Folder(Sounds):
    """Has the files in ``there``; each look at the disk is in ``looks``."""

    def __init__(self) -> None:
        super().__init__()
        self.there: set[str] = set()
        self.looks: list[str] = []

    def _make(self, name: str) -> Any:
        self.looks.append(name)
        if name not in self.there:
            raise SoundError(f"{name} cannot be read")
        return object()


def test_a_file_that_is_put_there_later_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds, now = Folder(), [100.0]
    monkeypatch.setattr(conference, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with capture_logs() as logs:
        for _ in range(3):
            assert sounds.get("a.wav") is None
        now[0] += conference.AGAIN_SECONDS
        assert sounds.get("a.wav") is None
        sounds.there.add("a.wav")
        assert sounds.get("a.wav") is None, "it is not looked for at each call"
        now[0] += conference.AGAIN_SECONDS
        player = sounds.get("a.wav")
        assert player is not None
        assert sounds.get("a.wav") is player
    assert len(sounds.looks) == 3
    assert [one["event"] for one in logs] == ["sip.no_sound"]


class Bridge:
    """Who hears whom, and how loud, by name."""

    def __init__(self) -> None:
        self.ways: dict[tuple[str, str], float] = {}
        self.slots = 0

    def port(self, name: str, slot: int | None = None) -> FakePort:
        self.slots += 1
        return FakePort(self, name, self.slots if slot is None else slot)

    def heard_by(self, name: str) -> set[str]:
        return {source for source, sink in self.ways if sink == name}


class FakePort:
    """A port of the bridge; each connection is made once and removed once."""

    def __init__(self, bridge: Bridge, name: str, slot: int) -> None:
        self.bridge, self.name, self.slot = bridge, name, slot
        self.serves: Any = None

    def getPortId(self) -> int:  # noqa: N802
        return self.slot

    def startTransmit(self, sink: FakePort) -> None:  # noqa: N802
        assert (self.name, sink.name) not in self.bridge.ways
        self.bridge.ways[self.name, sink.name] = 1.0

    def startTransmit2(self, sink: FakePort, param: Any) -> None:  # noqa: N802
        self.startTransmit(sink)
        self.bridge.ways[self.name, sink.name] = round(param.level, 3)

    def stopTransmit(self, sink: FakePort) -> None:  # noqa: N802
        del self.bridge.ways[self.name, sink.name]

    def attach(self, queues: Any) -> None:
        self.serves = queues

    def detach(self) -> None:
        self.serves = None


class Pool(PortPool):
    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge

    def _make(self) -> Port:
        made = self.bridge.port(f"port {len(self._all)}")
        self._all.append(made)
        return made


class Players(Sounds):
    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge, self.given_back = bridge, list[str]()

    def take(self, name: str) -> Any:
        return None if name == "none" else self.bridge.port(name)

    def give_back(self, name: str, player: Any) -> None:
        if player is not None:
            self.given_back.append(name)


class Room:
    """A bridge with calls; ``sources`` is where each session's audio was taken from last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bridge = Bridge()
        self.pool, self.sounds = Pool(self.bridge), Players(self.bridge)
        self.sources: dict[Any, Source] = {}
        listen = Uplink.listen

        def noted(uplink: Uplink, source: Source) -> None:
            self.sources[uplink] = source
            listen(uplink, source)

        monkeypatch.setattr(Uplink, "listen", noted)

    def link(self, name: str, *, session: bool = True) -> ConferenceLink:
        made = ConferenceLink(self.sounds, self.pool, 60, may_send=True)
        if session:
            made.take_port(CallAudio(Codec.PCMU, 10))
        made.wire(self.bridge.port(name))
        return made

    def source(self, link: ConferenceLink) -> Source | None:
        return None if link._audio is None else self.sources[link._audio.uplink]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(monkeypatch)


def test_a_caller_hears_the_session_and_is_heard_past_the_bridge(room: Room) -> None:
    a = room.link("a")
    assert room.bridge.ways == {("port 0", "a"): 1.0}
    assert room.source(a) is Source.PACKETS
    a.wire(a.media)
    assert len(room.bridge.ways) == 1, "each connection once"


@pytest.mark.parametrize("listen", [True, False])
def test_joined_calls_hear_each_other_and_one_session_listens_or_none(
    room: Room, listen: bool
) -> None:
    a, b = room.link("a"), room.link("b")
    a.join(b, listen)
    assert room.bridge.heard_by("a") == ({"b", "port 0"} if listen else {"b"})
    assert room.bridge.heard_by("b") == {"a"}
    assert room.bridge.heard_by("port 0") == ({"a", "b"} if listen else set())
    assert room.source(a) is (Source.BRIDGE if listen else Source.NOBODY)
    a.hear_fully()
    assert set(room.bridge.ways.values()) == {1.0}
    assert a._level is None, "there is no level to raise"
    assert (b.port, room.pool.in_use) == (None, 1), "one session for both"
    a.join(b, True)
    assert room.bridge.heard_by("port 0") == {"a", "b"}


def test_calls_joined_at_a_level_keep_a_session_each(room: Room) -> None:
    a, b = room.link("a"), room.link("b")
    a.join(b, listen=True, level=0.25)
    assert room.bridge.ways == {
        ("port 0", "a"): 1.0, ("port 1", "b"): 1.0, ("a", "b"): 0.25, ("b", "a"): 0.25,
        ("a", "port 0"): 1.0, ("b", "port 1"): 1.0,
    }  # fmt: skip
    assert (room.source(a), room.source(b)) == (Source.BRIDGE, Source.BRIDGE)
    a.hear_fully()
    assert (room.bridge.ways["a", "b"], room.bridge.ways["b", "a"]) == (0.25, 1.0)


def test_a_call_that_is_joined_with_a_third_leaves_the_second(room: Room) -> None:
    a, b, c = room.link("a"), room.link("b"), room.link("c")
    a.join(b, listen=False)
    a.join(c, listen=False)
    assert room.bridge.heard_by("b") == set()
    assert room.bridge.heard_by("c") == {"a"}
    assert room.bridge.heard_by("a") == {"c"}
    b.disconnect()
    b.close()
    assert a.partner is c
    c.close()
    assert room.source(a) is Source.NOBODY, "its session did not listen before, either"


def test_the_end_of_one_leaves_the_other_with_its_session(room: Room) -> None:
    a, b = room.link("a"), room.link("b", session=False)
    a.join(b, listen=True)
    b.play("ring")
    b.disconnect()
    b.close()
    assert room.bridge.ways == {("port 0", "a"): 1.0, ("a", "port 0"): 1.0}
    assert (a.partner, room.source(a)) == (None, Source.PACKETS)
    assert room.sounds.given_back == ["ring"]
    a.disconnect()
    a.close()
    assert room.bridge.ways == {}
    assert (room.pool.in_use, len(room.pool.connections)) == (0, 0)


def test_on_hold_the_session_hears_silence_instead_of_music(room: Room) -> None:
    a, b = room.link("a"), room.link("b", session=False)
    a.hold(True)
    assert room.source(a) is Source.NOBODY
    a.join(b, listen=True)
    assert room.bridge.heard_by("b") == set(), "nothing is connected anew"
    a.hold(False)
    a.wire(a.media)
    assert room.bridge.heard_by("b") == {"a"}
    assert room.source(a) is Source.BRIDGE


def test_one_sound_after_another(room: Room) -> None:
    a = room.link("a")
    a.play("ring")
    a.play("ring")
    assert room.bridge.heard_by("a") == {"port 0", "ring"}
    a.play("busy")
    assert room.bridge.heard_by("a") == {"port 0", "busy"}
    a.play("none")
    assert room.bridge.heard_by("a") == {"port 0"}, "one that cannot be had"
    a.play(ECHO)
    assert room.bridge.heard_by("a") == {"port 0", "a"}
    a.play("")
    assert room.bridge.heard_by("a") == {"port 0"}
    assert room.sounds.given_back == ["ring", "busy"]


def test_a_sound_before_the_stream_begins_with_it(room: Room) -> None:
    a = ConferenceLink(room.sounds, room.pool, 60, may_send=True)
    a.play("ring")
    assert room.bridge.ways == {}
    a.wire(room.bridge.port("a"))
    assert room.bridge.heard_by("a") == {"ring"}


def test_another_stream_of_a_call_is_connected_as_the_one_before(room: Room) -> None:
    """Its slot may be a new one, or be that of somebody else's stream by now."""
    a, b = room.link("a"), room.link("b", session=False)
    a.join(b, listen=True)
    a.play("ring")
    room.bridge.ways = {way: 1.0 for way in room.bridge.ways if "a" not in way}  # pjsua did that
    a.wire(room.bridge.port("a2"))
    assert room.bridge.heard_by("a2") == {"port 0", "b", "ring"}
    assert room.bridge.heard_by("b") == {"a2"}
    assert room.bridge.heard_by("port 0") == {"a2", "b"}


def test_a_successor_has_all_that_its_predecessor_had(room: Room) -> None:
    """INVITE with Replaces, or a REFER: session, partner and sound go over."""
    old, partner = room.link("old"), room.link("b", session=False)
    old.join(partner, listen=True)
    old.play("ring")
    new = room.link("new", session=False)
    new.take_over(old)
    assert room.bridge.heard_by("old") <= {"ring"}
    assert room.bridge.heard_by("new") == {"port 0", "b", "ring"}
    assert room.bridge.heard_by("b") == {"new"}
    assert room.bridge.heard_by("port 0") == {"new", "b"}
    assert (old.port, old.partner, new.partner, partner.partner) == (None, None, partner, new)
    old.disconnect()
    old.close()
    assert room.bridge.heard_by("new") == {"port 0", "b", "ring"}
    assert room.source(new) is Source.BRIDGE


def test_slots_of_a_call(room: Room) -> None:
    a = room.link("a")
    assert a.port is not None
    assert [a.at(slot) for slot in (a.port.getPortId(), a.media.getPortId(), 99)] == [
        True, True, False,
    ]  # fmt: skip
    a.stream_destroyed(7)
    assert a.media is not None, "of another stream"
    a.stream_destroyed(0)
    assert a.media is None


def test_a_port_serves_another_call_only_once_its_connections_are_gone(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge removes them later."""
    done = [0]
    monkeypatch.setattr(Connections, "done", property(lambda _self: done[0]))
    a = room.link("a")
    a.disconnect()
    a.close()
    assert room.pool.connections.asked == 1
    b = room.link("b")
    assert b.port is not None
    assert cast(FakePort, b.port).name == "port 1"
    done[0] = 1
    assert cast(FakePort, room.link("c").port).name == "port 0"


def test_a_connection_that_cannot_be_removed_is_gone(room: Room) -> None:
    a, b = room.bridge.port("a"), room.bridge.port("b")
    made = Connections()
    made.connect(a, b)
    made.connect(a, b, None)

    def gone(_sink: FakePort) -> None:
        raise pj.Error

    a.stopTransmit = gone  # type: ignore[method-assign, assignment]
    with capture_logs() as logs:
        made.disconnect(a, b)
        made.disconnect(a, b)
    assert [one["event"] for one in logs] == ["sip.bridge_failed"]
    assert (len(made), made.asked) == (0, 0)
