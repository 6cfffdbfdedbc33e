# SPDX-License-Identifier: GPL-2.0-or-later
"""A softphone: baresip, driven over its ctrl_tcp module (JSON in netstrings).

It says what :meth:`Phone.say` gives it, and its sndfile module keeps what it hears.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.interop.lab.debian import Root
from tests.interop.lab.keys import Keys
from tests.interop.lab.ports import PHONES, free_port
from tests.interop.lab.process import Process
from tests.interop.lab.sound import SILENCE_S, Heard, write_wav

WITHIN_S = 30.0
KEPT = 2000

_CONFIG = """\
sip_listen {host}:{port}
sip_cafile {ca}
sip_certificate {certificate}
call_max_calls 4
call_local_timeout 60
audio_source aufile,{quiet}
audio_player aubridge,nowhere
audio_alert aubridge,nowhere
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
rtp_ports {rtp}
jitter_buffer_type fixed
jitter_buffer_delay 1-5
net_interface {host}
module_path {modules}
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module srtp.so
module dtls_srtp.so
module_app account.so
module_app menu.so
module_app ctrl_tcp.so
ctrl_tcp_listen {host}:{control}
snd_path {sounds}
ring_aufile none
ringback_aufile none
callwaiting_aufile none
notfound_aufile none
busy_aufile none
error_aufile none
"""

Event = Mapping[str, Any]


class Phone:
    """One softphone with one account.

    Args:
        folder: for its configuration, log and recordings.
        user: user part of its accounts.
        keys: its certificate for TLS, which is also the only CA that it trusts.
    """

    def __init__(self, root: Root, folder: Path, user: str, *, keys: Keys | None = None) -> None:
        self.user = user
        self.folder = folder
        self.port = free_port(PHONES, 2)  # baresip listens for TLS at the next one
        self.events: deque[Event] = deque(maxlen=KEPT)
        """What it said since it last dialled."""
        self._root = root
        self._keys = keys
        self._control = free_port(PHONES)
        self._sounds = folder / "sounds"
        self._process = Process(
            [*root.command("usr/bin/baresip"), "-4", "-f", str(folder)],
            folder,
            folder / "baresip.log",
        )
        self._tokens = itertools.count(1)
        self._spoken = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Event]] = {}
        self._pulse = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    # ---- life

    async def start(self) -> None:
        """Run it until it takes commands."""
        self._sounds.mkdir(parents=True)
        quiet = self.folder / "quiet.wav"
        write_wav(quiet, bytes(2 * 8000 * SILENCE_S))
        config = _CONFIG.format(
            host=PHONES,
            port=self.port,
            control=self._control,
            rtp="40000-49998",
            ca=self._keys.certificate if self._keys else "",
            certificate=self._certificate(),
            quiet=quiet,
            sounds=self._sounds,
            modules=self._root.path / "usr/lib/baresip/modules",
        )
        lines = [line for line in config.splitlines() if len(line.split()) > 1]
        (self.folder / "config").write_text("\n".join(lines) + "\n")
        (self.folder / "accounts").write_text("")
        (self.folder / "contacts").write_text("")
        await self._process.start()
        await self._connect()

    async def stop(self) -> None:
        """End it, and its calls with it."""
        if self._writer is not None:
            self._writer.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._process.stop()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    try:
                        opened = await asyncio.open_connection(PHONES, self._control)
                        break
                    except OSError:
                        assert self._process.running, self._process.tail()
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"baresip takes no commands: {self._process.tail()}") from None
        reader, self._writer = opened
        self._reader = asyncio.create_task(self._read(reader), name=f"baresip {self.user}")

    def _certificate(self) -> str:
        """Certificate and key in one file, as baresip wants them."""
        if self._keys is None:
            return ""
        path = self.folder / "certificate.pem"
        path.write_text(self._keys.certificate.read_text() + self._keys.key.read_text())
        return str(path)

    # ---- what it does

    async def account(self, address: str, parameters: str) -> None:
        """Have an account ``<sip:address>parameters``, in baresip's form."""
        await self.command("uanew", f"<sip:{address}>{parameters}")

    async def register(self, registrar: str, password: str, parameters: str = "") -> None:
        """Register at ``host:port`` and wait until that is done."""
        await self.account(f"{self.user}@{registrar}", f";auth_pass={password}{parameters}")
        await self.wait("REGISTER_OK")

    async def dial(self, uri: str) -> None:
        """Start a call; :meth:`wait` for what becomes of it. Earlier events are forgotten."""
        self.events.clear()
        await self.command("dial", uri)

    async def call(self, uri: str) -> None:
        """Start a call and wait until it is answered."""
        await self.dial(uri)
        await self.wait("CALL_ESTABLISHED")

    async def accept(self) -> None:
        """Take the call that rings, or is about to."""
        await self.wait("CALL_INCOMING")
        await self.command("accept")
        await self.wait("CALL_ESTABLISHED")

    async def press(self, digits: str) -> None:
        """Keys, as RFC 4733 events one after the other."""
        await self.command("sndcode", digits)

    async def say(self, pcm: bytes) -> None:
        """Speak: 16-bit PCM at 8 kHz; silence follows."""
        path = self.folder / f"said-{next(self._spoken)}.wav"
        write_wav(path, pcm + bytes(2 * 8000 * SILENCE_S))
        await self.command("ausrc", f"aufile,{path}")

    async def listen_anew(self) -> Heard:
        """What it hears from now on, off its loudspeaker: the sndfile module ends with a hold."""
        folder = self._sounds / f"anew-{next(self._spoken)}"
        folder.mkdir()
        await self.command("auplay", f"aufile,{folder / 'dump-anew-dec.wav'}")
        return Heard(folder)

    async def hold(self) -> None:
        """Put the call on hold: a re-INVITE with sendonly."""
        await self.command("hold")

    async def resume(self) -> None:
        """Take the call back. (baresip answers with an error when no other call was to be held.)"""
        await self.command("resume", check=False)

    async def hang_up(self) -> None:
        """BYE, or CANCEL, and wait until the call is over."""
        await self.command("hangup")
        await self.wait("CALL_CLOSED")

    async def idle(self) -> None:
        """End what a test before has left, and forget its events."""
        await self.command("hangupall", "dir=all", check=False)
        self.events.clear()

    @property
    def heard(self) -> Heard:
        """All that it heard since it was started."""
        return Heard(self._sounds)

    # ---- ctrl_tcp

    async def command(self, name: str, params: str = "", *, check: bool = True) -> str:
        """A command of baresip's menu; returns what it answers, which has to be a success."""
        assert self._writer is not None
        token = str(next(self._tokens))
        body = json.dumps({"command": name, "params": params, "token": token}).encode()
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._answers[token] = future
        self._writer.write(b"%d:%s," % (len(body), body))
        async with asyncio.timeout(WITHIN_S):
            answer = await future
        assert answer["ok"] or not check, (name, params, answer, self._process.tail())
        return str(answer.get("data", ""))

    def all(self, event: str) -> list[Event]:
        """Its events of this type, so far."""
        return [one for one in self.events if one.get("type") == event]

    async def wait(self, event: str, within_s: float = WITHIN_S, count: int = 1) -> Event:
        """The ``count``-th such event, waited for."""
        try:
            async with asyncio.timeout(within_s):
                while len(found := self.all(event)) < count:
                    over = self.all("CALL_CLOSED")
                    assert not over or event != "CALL_ESTABLISHED", dict(over[-1])
                    self._pulse.clear()
                    await self._pulse.wait()
        except TimeoutError:
            seen = [dict(one) for one in list(self.events)[-8:]]
            raise AssertionError(f"{self.user}: no {event}; last: {seen}") from None
        return found[count - 1]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                size = await reader.readuntil(b":")
                body = await reader.readexactly(int(size[:-1]) + 1)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            message = json.loads(body[:-1])
            if message.get("event"):
                self.events.append(message)
                self._pulse.set()
            elif (token := message.get("token")) in self._answers:
                self._answers.pop(token).set_result(message)
