# SPDX-License-Identifier: GPL-2.0-or-later
"""How pjsua2's endpoint is set up: no threads of its own, G.711 and nothing else."""

from __future__ import annotations

from typing import Any

import pjsua2 as pj

from gateway.audio.g711 import FRAME_MS, SAMPLE_RATE, Codec
from gateway.sip.settings import SipSettings


def endpoint_config(settings: SipSettings, log_writer: Any) -> Any:
    """What ``libInit`` is given, media aside. ``log_writer`` must live as long as the library."""
    config = pj.EpConfig()
    config.logConfig.level = config.logConfig.consoleLevel = settings.log_level
    config.logConfig.msgLogging = 0
    config.logConfig.writer = log_writer
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = False
    config.uaConfig.maxCalls = 65535  # cut down by the library to what it was built for
    config.uaConfig.userAgent = settings.user_agent
    if settings.stun_server:
        servers = pj.StringVector()
        servers.append(settings.stun_server)
        config.uaConfig.stunServer = servers
        config.uaConfig.stunIgnoreFailure = True
    return config


def configure_media(media: Any, settings: SipSettings) -> None:
    """8 kHz from end to end, in frames of 20 ms."""
    media.clockRate = media.sndClockRate = SAMPLE_RATE
    media.channelCount = 1
    media.audioFramePtime = FRAME_MS
    media.ptime = FRAME_MS
    media.noVad = True
    media.ecTailLen = 0
    media.sndAutoCloseTime = -1
    # A stream and a port of ours for each call, as many again while their removal is under way,
    # and the master port. Not more: each port has tables as long as this.
    media.maxMediaPorts = max(254, 4 * settings.max_calls + 16)
    settings.jitter_buffer.apply(media)


def only_g711(endpoint: Any) -> None:
    """Switch every other codec off."""
    wanted = {f"{codec.value}/8000": 201 - n for n, codec in enumerate(Codec)}
    codecs = endpoint.codecEnum2()
    for index in range(len(codecs)):
        identity = str(codecs[index].codecId)
        name = next((name for name in wanted if identity.startswith(name)), "")
        endpoint.codecSetPriority(identity, wanted.get(name, 0))
