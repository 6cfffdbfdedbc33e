# SPDX-License-Identifier: GPL-2.0-or-later
"""Asterisk's configuration files: a small PBX with telephones 201 to 209 and a few services.

What concerns the gateway is not here but in ``deploy/asterisk``; the tests include those files.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.interop.lab.debian import Root
from tests.interop.lab.keys import Keys
from tests.interop.lab.ports import PBX
from tests.interop.lab.sound import write_wav

PHONE_SECRET = "phone-secret"
MANAGER_SECRET = "manager-secret"
HOLD_MUSIC_HZ = 700

MODULES = """
res_sorcery_config res_sorcery_memory res_sorcery_astdb res_pjproject res_http_websocket res_crypto
res_srtp res_rtp_asterisk res_musiconhold res_pjsip res_pjsip_session res_pjsip_sdp_rtp
res_pjsip_registrar res_pjsip_authenticator_digest res_pjsip_outbound_authenticator_digest
res_pjsip_outbound_registration res_pjsip_endpoint_identifier_user
res_pjsip_endpoint_identifier_ip res_pjsip_caller_id res_pjsip_diversion res_pjsip_nat
res_pjsip_rfc3326 res_pjsip_dtmf_info res_pjsip_refer res_pjsip_pubsub res_pjsip_dlg_options
res_pjsip_logger res_pjsip_header_funcs res_pjsip_acl res_pjsip_path chan_pjsip
func_pjsip_endpoint func_pjsip_aor func_pjsip_contact bridge_simple bridge_native_rtp
bridge_softmix bridge_holding bridge_builtin_features codec_ulaw codec_alaw codec_a_mu codec_g722
codec_opus_open_source res_format_attr_opus
codec_resample format_wav format_pcm pbx_config app_dial app_echo app_playback
app_playtones app_read app_record app_verbose app_milliwatt app_stack app_exec app_senddtmf
app_userevent app_transfer app_bridgewait app_queue
func_logic func_strings func_channel func_callerid func_global func_timeout func_talkdetect
"""

ASTERISK = """\
[directories]
astetcdir => {etc}
astmoddir => {libraries}/asterisk/modules
astvarlibdir => {var}
astdbdir => {var}
astkeydir => {var}
astcachedir => {var}
astdatadir => {share}
astagidir => {share}/agi-bin
astspooldir => {var}/spool
astrundir => {var}
astlogdir => {var}
astsbindir => {sbin}
[options]
verbose = 3
nocolor = yes
hideconnect = yes
"""

LOGGER = """\
[general]
dateformat = %F %T.%3q
[logfiles]
console => notice,warning,error,verbose(3),dtmf
"""

MANAGER = """\
[general]
enabled = yes
bindaddr = {host}
port = {port}
displayconnects = no
[lab]
secret = {secret}
read = all
write = all
"""

RTP = """\
[general]
rtpstart = {low}
rtpend = {high}
strictrtp = yes
icesupport = no
"""

MUSIC = """\
[default]
mode = files
directory = {folder}
"""

PJSIP = """\
[global]
type = global
user_agent = Lab Asterisk

[transport-udp]
type = transport
protocol = udp
bind = {host}:{port}

[transport-tcp]
type = transport
protocol = tcp
bind = {host}:{port}

[transport-tls]
type = transport
protocol = tls
bind = {host}:{tls_port}
cert_file = {certificate}
priv_key_file = {key}
method = tlsv1_2

[phone](!)
type = endpoint
context = phones
disallow = all
allow = ulaw,alaw
direct_media = no
rtp_symmetric = yes
[phone-auth](!)
type = auth
auth_type = userpass
password = {secret}
[phone-aor](!)
type = aor
max_contacts = 1
remove_existing = yes
"""

PHONE = """
[{number}](phone)
auth = {number}
aors = {number}
callerid = Phone {number} <{number}>
[{number}](phone-auth)
username = {number}
[{number}](phone-aor)
"""

EXTENSIONS = """\
[general]
static = yes
writeprotect = yes

; 2xx telephones, 300 echo, 301 reads four digits, 302 music on hold (700 Hz), 303 a tone of
; 1004 Hz, 304 busy, 305 rings for ever, 306 hangs up at once, 307 declines
[services]
exten => _20X,1,Dial(PJSIP/${EXTEN},30)
 same => n,Hangup(${HANGUPCAUSE})
exten => 300,1,Answer()
 same => n,Echo()
exten => 301,1,Answer()
 same => n,Read(DIGITS,,4,,1,10)
 same => n,UserEvent(Digits,Digits: ${DIGITS})
 same => n,Hangup()
exten => 302,1,Answer()
 same => n,MusicOnHold(default,60)
exten => 303,1,Answer()
 same => n,Milliwatt()
exten => 304,1,Hangup(17)
exten => 305,1,Ringing()
 same => n,Wait(60)
exten => 306,1,Answer()
 same => n,Hangup(16)
exten => 307,1,Hangup(21)

[phones]
include => services
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where Asterisk listens."""

    sip: int
    tls: int
    manager: int
    rtp: tuple[int, int]


class Configuration:
    """The files of one Asterisk; ``pjsip`` and ``extensions`` are added to its own.

    ``phones`` is a list of contexts that the telephones' context includes.
    """

    def __init__(self, folder: Path, root: Root, ports: Ports, keys: Keys) -> None:
        self.etc = folder / "etc"
        self.var = folder / "var"
        self.queues = ""
        """Text of queues.conf."""
        self._folder = folder
        self._root = root
        self._ports = ports
        self._keys = keys

    @property
    def main(self) -> Path:
        """The file that is given on the command line."""
        return self.etc / "asterisk.conf"

    def write(self, pjsip: str, extensions: str, includes: tuple[str, ...] = ()) -> None:
        """Write all of them."""
        for folder in (self.etc, self.var / "spool", self.var / "keys", self._folder / "music"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._root.path / "etc/asterisk/indications.conf", self.etc)
        share = self._root.path / "usr/share/asterisk"
        modules = "".join(f"load = {name}.so\n" for name in MODULES.split())
        ports = self._ports
        phones = "".join(PHONE.format(number=number) for number in range(201, 210))
        self._put(
            "asterisk.conf",
            ASTERISK.format(
                etc=self.etc,
                var=self.var,
                libraries=self._root.libraries,
                share=share,
                sbin=self._root.path / "usr/sbin",
            ),
        )
        self._put("modules.conf", f"[modules]\nautoload = no\n{TIMING}{modules}")
        self._put("logger.conf", LOGGER)
        self._put(
            "manager.conf", MANAGER.format(host=PBX, port=ports.manager, secret=MANAGER_SECRET)
        )
        self._put("rtp.conf", RTP.format(low=ports.rtp[0], high=ports.rtp[1]))
        self._put("musiconhold.conf", MUSIC.format(folder=self._folder / "music"))
        own = PJSIP.format(
            host=PBX,
            port=ports.sip,
            tls_port=ports.tls,
            certificate=self._keys.certificate,
            key=self._keys.key,
            secret=PHONE_SECRET,
        )
        self._put("pjsip.conf", f"{own}{phones}\n{pjsip}")
        included = "".join(f"include => {name}\n" for name in includes)
        self._put("extensions.conf", f"{EXTENSIONS}{included}\n{extensions}")
        for name in EMPTY:
            self._put(name, "")
        self._put("queues.conf", self.queues)
        music = self._folder / "music" / "hold.wav"
        if not music.exists():
            seconds = np.arange(8000 * 10) / 8000
            tone = 9000 * np.sin(2 * math.pi * HOLD_MUSIC_HZ * seconds)
            write_wav(music, tone.astype("<i2").tobytes())

    def _put(self, name: str, text: str) -> None:
        (self.etc / name).write_text(text)


TIMING = "preload = res_timing_timerfd.so\n"

EMPTY = (
    *("acl.conf", "ccss.conf", "cdr.conf", "cel.conf", "codecs.conf", "extconfig.conf"),
    *(
        "features.conf",
        "queuerules.conf",
        "http.conf",
        "pjproject.conf",
        "stasis.conf",
        "udptl.conf",
    ),
)
"""Files that Asterisk warns about when they are missing."""
