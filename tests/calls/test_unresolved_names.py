# SPDX-License-Identifier: GPL-2.0-or-later
"""Host names that do not resolve, with a name server that says nothing: nobody waits for them."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.api.client import ask
from tests.support.callee import CalledPhone
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.site_under_test import site

ROUTES = """
[[route]]
name = "anybody"
[route.greeting]
say = "Hello."
"""
MORE = """
[access]
unknown_sources = "{unknown}"
[outbound]
enabled = true
allowed_prefixes = ["answer"]
"""


class Raw(DialogCall):
    """A call whose INVITE is changed before it is sent."""

    change: Any = None

    def invite(self) -> None:
        """Send it."""
        self._to, self._target = f"<{self.uri}>", self.uri
        headers = [*self.headers, "Content-Type: application/sdp"]
        body = self.sdp.text(self.rtp.port)
        self._invite = self.change(self._request("INVITE", self._branch, 1, headers, body))
        self.phone.send(self._invite)


def with_name(kind: str) -> Any:
    """Writes a name into an INVITE."""

    def change(invite: bytes) -> bytes:
        if kind == "maddr":
            return invite.replace(b";rport", b";rport;maddr=who.silent.test", 1)
        if kind == "contact":
            return re.sub(rb"(Contact: <sip:)[^>]*>", rb"\1t@who.silent.test>", invite)
        route = b"Record-Route: <sip:proxy.silent.test;lr>\r\nContact: "
        return invite.replace(b"Contact: ", route, 1)

    return change


@pytest.mark.parametrize("kind", ["maddr", "contact", "record-route"])
async def test_names_of_strangers(runner: object, own_folder: Path, kind: str) -> None:
    """The call is served, and its BYE goes where the INVITE came from."""
    async with site(own_folder, more=MORE.format(unknown="allow"), routes=ROUTES) as gateway:
        made = dialog_call(gateway.phone, "1")
        gateway.phone.calls.pop(made.call_id)
        call = Raw(gateway.phone, "1", made.codecs, (), made.rtp, sdp=made.sdp)
        gateway.phone.calls[call.call_id] = call
        call.change = with_name(kind)
        await answered(call)
        name = (await gateway.gateway.wait("call.confirmed"))["call"]
        await asyncio.to_thread(ask, own_folder / "control", "hangup", call=name)
        await call.hung_up()
        assert (await gateway.phone.options()).code == 200
        assert not gateway.gateway.all("sip.bye_undelivered")


async def test_a_datagram_of_somebody_unknown(runner: object, own_folder: Path) -> None:
    """Refused where it came from, and nobody waits for the name in it."""
    async with site(own_folder, more=MORE.format(unknown="reject"), routes=ROUTES) as gateway:
        made = dialog_call(gateway.phone, "1")
        gateway.phone.calls.pop(made.call_id)
        call = Raw(gateway.phone, "1", made.codecs, (), made.rtp, sdp=made.sdp)
        gateway.phone.calls[call.call_id] = call
        call.change = with_name("maddr")
        call.invite()
        assert (await call.refused()).code == 403


async def test_a_call_of_ours_to_a_name(runner: object, own_folder: Path) -> None:
    """One that resolves is reached; one that does not is an outcome."""
    async with site(own_folder, more=MORE.format(unknown="allow"), routes=ROUTES) as gateway:
        phone = await CalledPhone().start()
        try:
            path = own_folder / "control"
            port = phone.address[1]
            to = f"sip:answer@localhost:{port}"
            await asyncio.to_thread(ask, path, "dial", to=to, route="anybody", trunk="")
            call = await phone.called()
            await call.until(lambda c: c.requests("ACK"))
            call._sequence = 1
            call.bye()
            to = "sip:answer@no-such-host.invalid"
            placed = await asyncio.to_thread(ask, path, "dial", to=to, route="anybody", trunk="")
            summary = await gateway.gateway.wait("call.summary", call=str(placed["call"]))
            assert summary["ending"]["why"] == "call_failed"
            assert "no-such-host.invalid" in summary["ending"]["detail"]
        finally:
            await phone.stop()


WITHOUT_NAMES = """
ip link set lo up
echo "nameserver 127.0.0.1" > "$1/resolv.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
if [ -e /etc/nsswitch.conf ]; then
  echo "hosts: files dns" > "$1/nsswitch.conf"
  mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
fi
shift
exec "$@"
"""
NAMESPACE = ("unshare", "--map-root-user", "--net", "--mount")


async def test_with_a_name_server_that_says_nothing(runner: object, own_folder: Path) -> None:
    """silent_name_server.py, in a network namespace of its own: what is asked there is seen."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    probe = await asyncio.create_subprocess_exec(
        *NAMESPACE, "sh", "-ec", WITHOUT_NAMES, "sh", own_folder, "true",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    told, _ = await probe.communicate()
    if probe.returncode:
        pytest.skip(f"no namespaces: {told.decode()[-200:]}")
    tests = Path(__file__).with_name("silent_name_server.py")
    inner = await asyncio.create_subprocess_exec(
        *NAMESPACE, "--kill-child", "--fork", "sh", "-ec", WITHOUT_NAMES, "sh", own_folder,
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        told, _ = await inner.communicate()
    finally:
        if inner.returncode is None:
            inner.kill()
    assert inner.returncode == 0, told.decode()
