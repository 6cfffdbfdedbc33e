# SPDX-License-Identifier: GPL-2.0-or-later
"""Every metric moves when what it counts happens to a real call, and is described in the manual."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import sqlite3
import threading
from pathlib import Path
from typing import cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.api.metrics import READINGS, Metrics
from gateway.app.api_backend import _may_bring_calls
from gateway.audio import Codec
from gateway.config.operations import DATABASE_NAME
from tests import support
from tests.calls.test_api import API, TOKENS, Client
from tests.calls.test_browser_calls import page
from tests.calls.test_webhooks import hooks
from tests.support.gateway_process import WITHIN_S, Gateway
from tests.support.harness import TRUSTED, GatewayStack, eventually
from tests.support.http_service import Answer, http_service
from tests.support.made_sounds import g711, tone
from tests.support.referred import dial
from tests.support.rtcp_end import ReportingEnd
from tests.support.sip_phone import CODECS

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")

ROUTES = """
[[route]]
name = "office"
to = "^office$"
[route.greeting]
say = "Hello."
[route.session.audio.input.turn_detection]
type = "server_vad"
silence_duration_ms = 200
[[route.transfer]]
name = "desk"
to = "sip:1002@pbx.example"
[[route]]
name = "failing"
to = "^failing$"
[route.greeting]
say = "Hello."
[[route]]
name = "recorded"
to = "^recorded$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
consent = "none"
"""

MORE = """
[cost.budget]
per_day = 1000
[[trunk]]
name = "carrier"
registrar = "sip:127.0.0.1:{registrar}"
username = "u"
password = "p-of-the-trunk"
options_interval = 1
[access]
unknown_sources = "allow"
calls_per_second = 0
max_concurrent_calls = 0
[recording]
folder = "recordings"
[recording.upload]
endpoint = "{storage}"
bucket = "calls"
region = "r"
access_key = "k"
secret_key = "s-of-the-storage"
"""

TROUBLE = {
    *("calls_limit", "process_lost_calls", "ready", "draining", "drain_forced_calls"),
    *("media_faults", "queue_items", "queue_dropped", "traces", "recordings_lost_bytes"),
    *("records_pending", "records_oldest_pending_seconds"),
}
"""Metrics that no good call moves: of the process's life, of defects and overload."""

CANARIES = {
    *("canary_active", "variant_calls_ended"),
    *("synthetic_up", "synthetic_calls", "synthetic_heard_seconds"),
}
"""Metrics of canaries and of test calls, which ``test_canary`` has."""

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parsed(text: str) -> Samples:
    """Values by name of the metric and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix("gateway_")
        for sample in family.samples:
            key = (("", sample.name), *sorted(sample.labels.items()))
            found.setdefault(name, {})[key] = sample.value
    return found


@pytest.fixture(scope="module")
def scraped(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Samples, Samples, str]:
    """What ``/metrics`` says before and after calls of all kinds."""
    return runner.run(scrapes(tmp_path_factory.mktemp("world")))


class Carrier(asyncio.DatagramProtocol):
    """Answers REGISTER and OPTIONS, once it is told to."""

    answers = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        text = data.decode()
        if not self.answers or not text.startswith(("REGISTER ", "OPTIONS ")):
            return
        fields = dict(re.findall(r"^([\w-]+): *(.*?)\r$", text, re.MULTILINE))
        lines = [f"{name}: {fields[name]}" for name in ("Via", "From", "Call-ID", "CSeq")]
        bound = fields.get("Contact", "<sip:carrier@127.0.0.1>")
        lines += [f"To: {fields['To']};tag=r", f"Contact: {bound}", "Content-Length: 0"]
        self._transport.sendto("\r\n".join(["SIP/2.0 200 OK", *lines, "", ""]).encode(), addr)


async def scrapes(folder: Path) -> tuple[Samples, Samples, str]:
    loop = asyncio.get_running_loop()
    registrar, carrier = await loop.create_datagram_endpoint(Carrier, ("127.0.0.1", 0))
    port = registrar.get_extra_info("sockname")[1]
    with http_service() as receiver, http_service() as storage:
        storage.answers = [Answer(503)]
        receiver.answers = [Answer(403), Answer(200), Answer(500)]
        paged = API.replace("[api]\n", "[api]\nbrowser_calls = 1\n")
        more = paged + hooks(receiver.url, ["call.incoming", "call.ended"])
        more += MORE.format(registrar=port, storage=storage.url)
        realtime = "max_playout_seconds = 8"
        world = GatewayStack(folder, routes=ROUTES, more=more, realtime=realtime)
        await world.start()
        address = world.gateway.all("api.listening")[-1]["address"]
        headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
        async with httpx.AsyncClient(
            base_url=f"http://{address}", trust_env=False, timeout=WITHIN_S
        ) as http:
            before = parsed((await http.get("/metrics")).text)
            carrier.answers = True
            await calls_of_all_kinds(world)
            assert (await http.post("/api/v1/reload", headers=headers)).status_code == 200
            lasting = await world.dial("plain")
            text = ""

            async def counted() -> bool:
                nonlocal text
                text = (await http.get("/metrics")).text
                now = parsed(text)
                outcomes = [values for name, values in now.items() if name == "calls_ended"]
                ended = sum(sum(values.values()) for values in outcomes)
                up = all(any(now.get(f"trunk_{one}", {}).values()) for one in ("up", "registered"))
                tried = any(now["uploads"].values()) and any(now["uploads_pending"].values())
                return ended >= 8 and up and tried and any(now["webhooks_dead"].values())

            await eventually(counted, "counters")
            await world.summary_at_end(lasting)
        await world.stop()
    registrar.close()
    return before, parsed(text), text


async def calls_of_all_kinds(world: GatewayStack) -> None:
    # A caller who asks, interrupts the answer, and is transferred; the model uses a tool.
    arguments = json.dumps({"destination": "desk"})
    world.behave(
        answers=[
            {"kind": "pattern", "seconds": 0.2},
            {"kind": "pattern", "seconds": 6, "seed": 1},
            {"kind": "nothing", "tools": [{"name": "transfer_call", "arguments": arguments}]},
        ],
    )
    call = await dial(world, "office")
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    said = g711(tone(300, 600, 0.4), Codec.PCMU)
    call.rtp.say(said)
    await session.wait_until(lambda s: len(s.sent("response.done")) > 1, 20)
    await call.rtp.heard_bytes(8000)
    call.rtp.say(said)
    await session.wait_until(lambda s: s.truncations != [], 20)
    await call.asked()
    call.notify("200 OK", last=True)
    await world.gateway.wait("call.summary", call=call.call_id)

    # A network that loses, and reports; an answer that stalls, and one session after another.
    world.behave(
        answers=[{"kind": "pattern", "seconds": 2, "stall_at_ms": 400, "stall_s": 0.4}],
        expires_s=7,
    )
    lossy = world.phone.call("greeted")
    await lossy.rtp.close()
    payload_type, silence = CODECS["PCMU"]
    lossy.rtp = rtp = ReportingEnd(payload_type, silence)
    rtp.loss = itertools.cycle([False] * 9 + [True]).__next__
    rtp.reported_loss, rtp.network_ms = 0.05, 80.0
    lossy.invite()
    await lossy.answered()
    await rtp.until(lambda: rtp.reports_sent > 0, 20)
    await world.gateway.wait("call.handed_over", call=lossy.call_id)

    def reported() -> bool:
        return rtp.reports_sent > 1

    await eventually(reported, "reports", 20)
    await world.summary_at_end(lossy)

    # More than playout takes, recorded; then a recording that cannot be written for a while.
    long_answer = {"kind": "pattern", "seconds": 20, "burst": True}
    world.behave(vad="off", answers=[long_answer, {"kind": "silent"}])
    long = await world.dial("recorded")
    await (await world.session_of(long)).wait_until(lambda s: s.sent("response.done") != [], 20)
    await world.summary_at_end(long)
    folder, kept = world.folder / "recordings", world.folder / "kept"
    await eventually(lambda: list((folder / "pending").glob("*")) != [], "a complete recording")
    folder.rename(kept)
    folder.write_text("")
    world.gateway.tolerated |= {"call.playout_overflow"}
    unwritten = await world.dial("recorded")
    await world.gateway.wait("recording.write_failed", call=unwritten.call_id)
    await world.summary_at_end(unwritten)
    folder.unlink()
    kept.rename(folder)

    # A session that is lost, a server that refuses, a number that nobody has, and an odd request.
    world.behave(
        answers=[{"kind": "pattern", "seconds": 0.2}],
        end={"code": 1011, "after_s": 0.5, "first_sessions": 1},
    )
    lost = await world.dial("failing")
    await world.gateway.wait("call.session_replaced", call=lost.call_id)
    await world.summary_at_end(lost)
    for user, script in {
        "plain": {"refuse": {"step": "connect", "code": "invalid_api_key"}},
        "nobody": {},
    }.items():
        world.behave(**script)
        refused = world.phone.call(user)
        refused.invite()
        await refused.refused()
        await world.gateway.wait("call.summary", call=refused.call_id)
    async with page(world, "nobody") as one:
        await one.until(lambda: one.closed)
    world.behave()
    odd = world.phone.call("plain")
    odd.invite()
    await odd.answered()
    world.phone.send(
        b"PUBLISH sip:plain@127.0.0.1 SIP/2.0\r\n"
        b"Via: SIP/2.0/UDP 127.0.0.1:%d;branch=z9hG4bKodd\r\n"
        b"From: <sip:a@127.0.0.1>;tag=1\r\nTo: <sip:plain@127.0.0.1>\r\nCall-ID: odd\r\n"
        b"CSeq: 1 PUBLISH\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n" % world.phone.address[1]
    )
    await world.gateway.wait("sip.rejected")
    await world.summary_at_end(odd)


TRACED = """
[tracing]
endpoint = "{url}/v1/traces"
"""
ENTRY = (str(Path(support.__file__).with_name("faulty_gateway.py")),)


class Scraper:
    """Reads ``/metrics`` of a gateway until they show something."""

    def __init__(self, world: GatewayStack) -> None:
        self._world = world

    async def samples(self) -> Samples:
        """What they say now."""
        async with Client(self._world, "") as http:
            return parsed((await http.get("/metrics")).text)

    async def shows(self, *names: str) -> None:
        """Wait until each of these has a sample that is not 0."""

        async def shown() -> bool:
            now = await self.samples()
            return all(any(now[name].values()) for name in names)

        await eventually(shown, f"{names} above 0")


async def test_trouble_moves_the_other_metrics(own_folder: Path) -> None:
    with http_service() as collector:
        collected = threading.Event()
        collector.answers = [Answer(400, until=collected)]
        more = API + TRACED.format(url=collector.url)
        world = GatewayStack(own_folder, more=more, entry=ENTRY, drain_seconds=1)
        world.behave(vad="off", answers=[{"kind": "silent"}])
        await world.start()
        try:
            await trouble(world, collected)
        finally:
            collected.set()
            world.gateway.kill()
            await world.phone.stop()
            await world.emulator.stop()


async def trouble(world: GatewayStack, collected: threading.Event) -> None:
    scraper = Scraper(world)
    before = await scraper.samples()
    assert not any(any(before[name].values()) for name in TROUBLE - {"calls_limit", "ready"})
    # A collector of traces that hangs, while calls end: one is in its hands, one waits.
    for _ in range(3):
        await world.summary_at_end(await world.dial())
    await scraper.shows("queue_items", "queue_dropped")
    collected.set()

    # A defect where audio is moved, and a database that somebody else keeps.
    (world.folder / "fault").write_text("move of audio")
    call = await world.dial()
    await world.gateway.wait("media.fault")
    (world.folder / "fault").unlink()
    other = sqlite3.connect(world.records_folder / DATABASE_NAME)
    other.execute("BEGIN EXCLUSIVE")
    await world.summary_at_end(call)
    await scraper.shows("media_faults", "records_pending", "records_oldest_pending_seconds")
    other.close()
    await scraper.shows("traces")

    # A process that dies with a call, and is started again with another limit.
    await world.dial()
    world.gateway.signal(signal.SIGKILL)
    await world.gateway.ended()
    config = world.gateway.config
    config.write_text(config.read_text().replace("max_calls = 100", "max_calls = 90"))
    world.gateway = Gateway(config, ENTRY)
    await world.gateway.start()
    world.phone.gateway = world.gateway.sip
    await scraper.shows("process_lost_calls", "ready")
    limit = (await scraper.samples())["calls_limit"]
    assert (list(before["calls_limit"].values()), list(limit.values())) == ([100.0], [90.0])

    # A drain that ends before a call does, whose telephone is gone.
    await world.dial()
    world.gateway.signal(signal.SIGTERM)
    await scraper.shows("draining")
    assert not any((await scraper.samples())["ready"].values())
    await world.phone.stop()
    await scraper.shows("drain_forced_calls")


TRUNK = """
[[trunk]]
name = "t"
registrar = "sip:127.0.0.1:{port}"
username = "u"
password = "p-of-the-trunk"
"""


async def test_ready_once_a_trunk_is_there(own_folder: Path) -> None:
    loop = asyncio.get_running_loop()
    registrar, carrier = await loop.create_datagram_endpoint(Carrier, ("127.0.0.1", 0))
    port = registrar.get_extra_info("sockname")[1]
    world = GatewayStack(own_folder, more=API + TRUNK.format(port=port))
    await world.start()
    address = world.gateway.all("api.listening")[-1]["address"]
    async with httpx.AsyncClient(
        base_url=f"http://{address}", trust_env=False, timeout=WITHIN_S
    ) as http:

        async def refused() -> bool:
            return (await http.get("/readyz")).status_code == 503

        async def ready() -> bool:
            return not await refused()

        await eventually(refused, "not ready")
        reasons = (await http.get("/readyz")).json()["reasons"]
        assert reasons == {"trunks": "no trunk is registered, or answers OPTIONS"}
        assert (await http.get("/healthz")).status_code == 200
        carrier.answers = True
        await eventually(ready, "ready")
    await world.stop()
    registrar.close()


async def test_not_ready_without_a_server(own_folder: Path) -> None:
    more, checked = API + TRUSTED, "health_check_interval = 1"
    world = GatewayStack(own_folder, more=more, realtime=checked, max_calls=1)
    await world.start()
    address = world.gateway.all("api.listening")[-1]["address"]
    async with httpx.AsyncClient(
        base_url=f"http://{address}", trust_env=False, timeout=WITHIN_S
    ) as http:

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(ready, "ready")
        assert (await world.phone.options()).code == 200
        world.behave(refuse={"step": "connect", "code": "invalid_api_key"})
        await world.gateway.wait("realtime.unhealthy")
        answer = await http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reasons"] == {"realtime": "no realtime server works"}
        await eventually(lambda: probed(world, 503), "503 for OPTIONS")
        world.behave()
        await world.gateway.wait("realtime.healthy")
        await eventually(ready, "ready")
        await eventually(lambda: probed(world, 200), "200 for OPTIONS")
        # A full gateway keeps its place among others: single calls are refused.
        call = await world.dial()
        full = world.phone.call("plain")
        full.invite()
        assert (await full.refused()).code == 503
        assert (await world.phone.options()).code == (await http.get("/readyz")).status_code == 200
        await world.summary_at_end(call)
    await world.stop()


async def probed(world: GatewayStack, code: int) -> bool:
    """Whether OPTIONS has this answer."""
    return (await world.phone.options()).code == code


@pytest.mark.parametrize(
    ("state", "options", "up"),
    [
        ("registered", "", True),
        ("registered", "no answer", False),
        ("failed", "200", False),
        ("static", "", True),
        ("static", "404", True),
        ("static", "no answer", False),
    ],
)
def test_which_trunks_may_bring_calls(state: str, options: str, up: bool) -> None:
    assert _may_bring_calls({"state": state, "options": options}) is up


def declared() -> list[str]:
    """Every metric there is, without the prefix."""
    counted = [family.name for family in Metrics([], []).registry.collect()]
    return sorted({*(name.removeprefix("gateway_") for name in counted), *READINGS})


@pytest.mark.parametrize("name", sorted(set(declared()) - CANARIES))
def test_a_metric_moves(scraped: tuple[Samples, Samples, str], name: str) -> None:
    before, after, _ = scraped
    assert name in after, "declared, and never fed"
    if name == "build_info":
        assert dict(next(iter(after[name])))["version"] == __version__
    elif name not in TROUBLE:
        assert before.get(name) != after[name]


def test_nothing_but_what_is_declared(scraped: tuple[Samples, Samples, str]) -> None:
    assert set(scraped[1]) | CANARIES == set(declared())


def test_labels_name_nobody(scraped: tuple[Samples, Samples, str]) -> None:
    labels = re.sub(r" [0-9.e+-]+$", "", scraped[2], flags=re.MULTILINE)  # no values
    for private in ("127.0.0.1", "sip:", "1002", "@", "p-of-the-trunk"):
        assert private not in labels


def test_every_metric_is_in_the_manual() -> None:
    table = PAGE.partition("| metric | labels |")[2].partition("\n\n")[0]
    told = {
        re.sub("_total$", "", name)
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])
    }
    assert told == set(declared())
