# SPDX-License-Identifier: GPL-2.0-or-later
"""What carriers and networks do wrong, made on purpose: by Kamailio, by Asterisk's endpoints, by a
relay of RTP, and by certificates."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY, PBX, PROXY, free_port
from tests.interop.lab.process import Process

SECRET = "trunk-secret"
RELAY = "127.0.0.6"
BOOT_S = 60.0

KINDS = ("loss", "jitter", "up", "down")
"""What the relay does, in the order of its ports: both ways lose or delay packets; ``up`` and
``down`` swallow what goes to Asterisk, or comes from there."""

_KAMAILIO = """\
#!KAMAILIO
debug=2
log_stderror=yes
fork=yes
children=1
tcp_children=1
auto_aliases=no
listen=udp:{host}:{port}
listen=tcp:{host}:{port}
listen=udp:{host}:{udp_only}
mpath="{modules}"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "auth.so"
loadmodule "xlog.so"

request_route {{
    xlog("L_WARN", "$rm $ru of $fU\\n");
    if (is_method("OPTIONS")) {{
        sl_send_reply("200", "OK");
        exit;
    }}
    if (is_method("REGISTER")) {{
        if ($fU == "nobody") {{
            sl_send_reply("404", "Not Found");
            exit;
        }}
        if (!pv_www_authenticate("lab", "{secret}", "0")) {{
            www_challenge("lab", "1");
            exit;
        }}
        append_to_reply("Contact: $ct;expires=20\\r\\n");
        sl_send_reply("200", "OK");
        exit;
    }}
    if (has_totag() || is_method("CANCEL")) {{
        if (!loose_route()) $du = "sip:{pbx}";
        if (has_body("application/sdp")) route(MEDIA);
        t_relay();
        exit;
    }}
    remove_hf("Route");
    if ($rU =~ "^99[3-6][0-9][0-9]$") {{
        if ($rU == "99407") {{
            if (!pv_proxy_authenticate("lab", "{secret}", "0")) {{
                proxy_challenge("lab", "1");
                exit;
            }}
        }}
        if ($rU == "99422") append_to_reply("Min-SE: 3600\\r\\n");
        sl_send_reply("$(rU{{s.substr,2,3}}{{s.int}})", "Made On Purpose");
        exit;
    }}
    if ($rU == "99000") exit;
    if ($rU == "99001") {{
        t_on_reply("CONTACT");
    }} else {{
        record_route();
    }}
    route(MEDIA);
    if ($rU =~ "^99") $rU = "600";
    $du = "sip:{pbx}";
    t_relay();
}}
# Of INVITE, and of the UPDATE that settles on one codec.
route[MEDIA] {{
    if ($tU == "99002") t_on_reply("ADDRESS");
    if ($tU == "99003") t_on_reply("EVENTS");
    {relayed}
}}
onreply_route[CONTACT] {{
    if (status == "200") {{
        remove_hf("Contact");
        append_hf("Contact: <sip:asterisk@127.0.0.99:5999>\\r\\n", "To");
    }}
}}
onreply_route[ADDRESS] {{
    if (status == "200") subst_body('/^c=IN IP4 .*/c=IN IP4 10.255.0.1/');
}}
onreply_route[EVENTS] {{
    if (status == "200") {{
        subst_body('/^(m=audio .* )[0-9]+/\\197/');
        subst_body('/^a=rtpmap:[0-9]+ telephone-event/a=rtpmap:97 telephone-event/');
        subst_body('/^a=fmtp:[0-9]+ 0-1/a=fmtp:97 0-1/');
    }}
}}
"""

_RELAYED = """
    if ($tU == "9901{index}") {{
        subst_body('/^c=IN IP4 .*/c=IN IP4 {host}/');
        subst_body('/^m=audio [0-9]+/m=audio {far}/');
        t_on_reply("RELAY{index}");
    }}
"""
_RELAY_REPLY = """
onreply_route[RELAY{index}] {{
    subst_body('/^c=IN IP4 .*/c=IN IP4 {host}/');
    subst_body('/^m=audio [0-9]+/m=audio {near}/');
}}
"""


class Faults:
    """Kamailio before Asterisk; the number that is called says what goes wrong."""

    def __init__(self, root: Root, folder: Path, pbx: str, relay: RtpRelay) -> None:
        self.port, self.udp_only = free_port(PROXY), free_port(PROXY)
        self._folder = folder
        asked, replies = "", ""
        for index, kind in enumerate(KINDS):
            near, far = relay.ports[kind]
            asked += _RELAYED.format(index=index, host=RELAY, far=far)
            replies += _RELAY_REPLY.format(index=index, host=RELAY, near=near)
        self._config = _KAMAILIO.format(
            host=PROXY,
            port=self.port,
            udp_only=self.udp_only,
            pbx=pbx,
            secret=SECRET,
            modules=root.libraries / "kamailio" / "modules",
            relayed=asked,
        )
        self._config += replies
        self._process = Process(
            [
                *root.command("usr/sbin/kamailio"),
                *("-f", str(folder / "kamailio.cfg"), "-Y", str(folder), "-DD", "-E"),
                *("-m", "32", "-M", "4"),
            ],
            folder,
            folder / "kamailio.log",
        )

    @property
    def address(self) -> str:
        """``host:port`` for UDP and TCP."""
        return f"{PROXY}:{self.port}"

    async def start(self) -> None:
        """Run it until it listens."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "kamailio.cfg").write_text(self._config)
        await self._process.start()
        async with asyncio.timeout(BOOT_S):
            while True:
                assert self._process.running, self._process.tail()
                try:
                    _reader, writer = await asyncio.open_connection(PROXY, self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    async def stop(self) -> None:
        """End it."""
        await self._process.stop()

    def tail(self) -> str:
        """The end of its log."""
        return self._process.tail()


def _is_key(data: bytes) -> bool:
    """Whether a packet is of a key: of those some may be lost, and not by chance all of one."""
    return len(data) > 1 and data[1] & 0x7F >= 96


class _Side(asyncio.DatagramProtocol):
    """One socket of the relay: what comes is handed over, with where it came from."""

    def __init__(self) -> None:
        self.peer: tuple[str, int] | None = None
        self.other: _Side | None = None
        self.transport: asyncio.DatagramTransport | None = None
        self.loss = self.jitter = 0.0
        self._count = 0
        self._random = random.Random(1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket stands."""
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Pass a packet on, late or never."""
        self.peer, other = addr, self.other
        if other is None or other.peer is None:
            return
        lost = self._random.random() < self.loss
        if lost and (self.loss == 1 or not _is_key(data)):
            return
        assert other.transport is not None
        if self.jitter:
            loop = asyncio.get_running_loop()
            self._count += 1  # in bursts, and in their order
            due = math.ceil(loop.time() / self.jitter) * self.jitter + self._count * 1e-6
            loop.call_at(due, other.transport.sendto, data, other.peer)
        else:
            other.transport.sendto(data, other.peer)


class RtpRelay:
    """Between the RTP of a caller and of Asterisk, which both learn its addresses from SDP."""

    def __init__(self) -> None:
        self.ports: dict[str, tuple[int, int]] = {}
        """The caller's side and Asterisk's; RTCP is one above."""
        for kind in KINDS:
            low = free_port(RELAY, 5)
            low += low % 2
            self.ports[kind] = low, low + 2
        self._transports: list[asyncio.BaseTransport] = []

    async def start(self) -> None:
        """Bind all ports."""
        loop = asyncio.get_running_loop()
        for kind, (near, far) in self.ports.items():
            for control in (0, 1):
                sides = [_Side(), _Side()]
                for side, port in zip(sides, (near, far), strict=True):
                    transport, _ = await loop.create_datagram_endpoint(
                        lambda side=side: side,  # type: ignore[misc]
                        local_addr=(RELAY, port + control),
                    )
                    self._transports.append(transport)
                up, down = sides
                up.other, down.other = down, up
                if control:
                    continue
                for side in sides:
                    side.loss = 0.1 if kind == "loss" else 0.0
                    side.jitter = 0.2 if kind == "jitter" else 0.0
                up.loss = 1.0 if kind == "up" else up.loss
                down.loss = 1.0 if kind == "down" else down.loss

    def stop(self) -> None:
        """Close all ports."""
        for transport in self._transports:
            transport.close()


class Certificates:
    """A CA of the gateway's trust, and certificates of it for Asterisk that are good or not."""

    KINDS = ("good", "expired", "early", "name", "stranger")

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.ports = {kind: free_port(PBX) for kind in self.KINDS}
        now = datetime.now(UTC)
        day = timedelta(days=1)
        authority = self._make("ca", None, now - day, now + 90 * day, None)
        other = self._make("other", None, now - day, now + 90 * day, None)
        self._make("good", PBX, now - day, now + 60 * day, authority)
        self._make("expired", PBX, now - 9 * day, now - day, authority)
        self._make("early", PBX, now + day, now + 60 * day, authority)
        self._make("name", "192.0.2.1", now - day, now + 60 * day, authority)
        self._make("stranger", PBX, now - day, now + 60 * day, other)
        self._make("gateway", GATEWAY, now - day, now + 60 * day, authority)

    def _make(
        self,
        name: str,
        address: str | None,
        begin: datetime,
        end: datetime,
        issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None,
    ) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"lab {name}")])
        by, sign = issuer or (subject, key)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(by)
        made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
        made = made.not_valid_before(begin).not_valid_after(end)
        made = made.add_extension(x509.BasicConstraints(ca=address is None, path_length=None), True)
        if address is not None:
            san = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            made = made.add_extension(san, False)
        pem = serialization.Encoding.PEM
        certificate = made.sign(sign, hashes.SHA256()).public_bytes(pem)
        (self.folder / f"{name}.crt").write_bytes(certificate)
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return subject, key


_ENDPOINTS = f"""
[system]
type = system
; 64 * T1, after which a call without an ACK ends, is 6.4 s
timer_t1 = 100
timer_b = 6400

[trunk](!)
type = endpoint
context = doctor
disallow = all
allow = ulaw,alaw
direct_media = no
[registers](!)
type = aor
max_contacts = 3
[login](!)
type = auth
auth_type = userpass
password = {SECRET}

[plain](trunk)
[info](trunk)
dtmf_mode = info
[srtp](trunk)
media_encryption = sdes
[g722](trunk)
disallow = all
allow = g722
[alaw](trunk)
disallow = all
allow = alaw
[timer](trunk)
timers = required
timers_min_se = 90
[reg](trunk)
auth = reg
aors = reg
[reg](login)
username = reg
[reg](registers)
[secure](trunk)
auth = secure
aors = secure
media_encryption = sdes
[secure](login)
username = secure
[secure](registers)
"""

_EXTENSIONS = """
[doctor]
exten => 600,1,Answer()
 same => n,Playtones(440)
 same => n,Wait(0.4)
 same => n,StopPlaytones()
 same => n,Echo()
exten => 601,1,Answer()
 same => n,Wait(2)
 same => n,Hangup(16)
exten => 602,1,Answer()
 same => n,Milliwatt()
"""

_TLS = """
[tls-{name}]
type = transport
protocol = tls
bind = {host}:{port}
cert_file = {folder}/{name}.crt
priv_key_file = {folder}/{name}.key
method = tlsv1_2
"""


def asterisk_conf(certificates: Certificates) -> tuple[str, str]:
    """What is added to pjsip.conf and extensions.conf."""
    listeners = [
        _TLS.format(name=name, host=PBX, port=port, folder=certificates.folder)
        for name, port in certificates.ports.items()
    ]
    return _ENDPOINTS + "".join(listeners), _EXTENSIONS
