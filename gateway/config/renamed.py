# SPDX-License-Identifier: GPL-2.0-or-later
"""What to write instead: new names of keys and values, places of absent ones, TOML syntax."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

RENAMED_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "access.concurrent_calls": "max_concurrent_calls",
        "access.unknown": "unknown_sources",
        "call.expect.cut_within_ms": "barge_in_latency_ms",
        "callbacks.dial": "auto_dial",
        "callbacks.late_seconds": "expire_after",
        "callbacks.max_waiting": "max_pending",
        "cost.budget.call": "per_call",
        "cost.budget.day": "per_day",
        "cost.budget.number": "per_caller",
        "cost.budget.warn": "warning_message",
        "cost.budget.warn_at": "warning_threshold",
        "cost.budget.warn_respond": "warning_response",
        "cost.ledger": "state_file",
        "dialplan.unknown_settings": "unknown_session_fields",
        "endpoint": "realtime_server",
        "limits.drain_notice_seconds": "min_drain_time",
        "limits.drain_seconds": "drain_timeout",
        "limits.max_call_seconds": "max_call_duration",
        "outbound.allowed": "allowed_prefixes",
        "outbound.forbidden": "denied_prefixes",
        "outbound.max_call_seconds": "max_call_duration",
        "outbound.max_concurrent": "max_concurrent_calls",
        "outbound.per_minute": "max_calls_per_minute",
        "outbound.ring_seconds": "ring_timeout",
        "realtime.handover_seconds": "handover_before_expiry",
        "realtime.playout_seconds": "max_playout_seconds",
        "realtime.probe_seconds": "health_check_interval",
        "route.afterwards": "post_call",
        "route.answer.when": "mode",
        "route.answer.whole": "play_to_end",
        "route.approval.by": "policy",
        "route.approval.say": "prompt",
        "route.approval.seconds": "timeout",
        "route.budget.call": "per_call",
        "route.budget.day": "per_day",
        "route.budget.number": "per_caller",
        "route.budget.warn": "warning_message",
        "route.budget.warn_at": "warning_threshold",
        "route.budget.warn_respond": "warning_response",
        "route.collect_digits.seconds": "timeout",
        "route.context.how": "strategy",
        "route.context.seconds": "timeout",
        "route.context.turns": "max_turns",
        "route.data.lines": "preserve_newlines",
        "route.data.max_value": "max_value_chars",
        "route.data.seconds": "timeout",
        "route.digits": "dtmf",
        "route.dtmf.in_band": "inband",
        "route.dtmf.inter_digit_seconds": "inter_digit_timeout",
        "route.dtmf.terminator": "finish_on_key",
        "route.end_call.farewell_seconds": "goodbye_timeout",
        "route.fallback.do": "action",
        "route.fallback.endpoint": "server",
        "route.fallback.seconds": "timeout",
        "route.follow_refer": "allowed_refer_to",
        "route.guard": "guardrail",
        "route.guardrail.say": "replacement",
        "route.guardrail.seconds": "timeout",
        "route.guardrail.who": "speaker",
        "route.hold.caller_audio": "session_audio",
        "route.hold.max_seconds": "max_duration",
        "route.hold.tool": "enabled",
        "route.idle.ask": "prompt",
        "route.idle.seconds": "timeout",
        "route.idle.times": "max_prompts",
        "route.interruptions.back_channel": "backchannel_phrases",
        "route.interruptions.cough_ms": "min_speech_ms",
        "route.interruptions.policy": "mode",
        "route.interruptions.protect": "uninterruptible_patterns",
        "route.interruptions.protect_greeting": "uninterruptible_greeting",
        "route.interruptions.sure_ms": "force_interrupt_ms",
        "route.interruptions.wait_seconds": "transcript_timeout",
        "route.keep": "context",
        "route.limits.max_call_seconds": "max_call_duration",
        "route.machine_detection.beep_seconds": "beep_timeout",
        "route.machine_detection.bot_say": "bot_message",
        "route.machine_detection.greeting_seconds": "greeting_threshold",
        "route.machine_detection.music_say": "music_message",
        "route.machine_detection.music_seconds": "music_threshold",
        "route.machine_detection.repeats": "bot_repeats",
        "route.machine_detection.turns": "bot_equal_turns",
        "route.machine_detection.voicemail_say": "voicemail_message",
        "route.machine_detection.voicemail_words": "voicemail_patterns",
        "route.machines": "machine_detection",
        "route.on_trouble": "fallback",
        "route.post_call.questions": "prompts",
        "route.post_call.seconds": "timeout",
        "route.rescue": "response_failure",
        "route.response_failure.filtered": "content_filter_message",
        "route.response_failure.give_up": "max_failures",
        "route.response_failure.go_on": "continue_incomplete",
        "route.response_failure.say": "message",
        "route.response_failure.sound_seconds": "sound_duration",
        "route.schedule_callback.allow": "allowed_numbers",
        "route.send_dtmf.how": "mode",
        "route.silence.seconds": "timeout",
        "route.tool.after_seconds": "filler_delay",
        "route.tool.max_result": "max_result_chars",
        "route.tool.say": "filler_text",
        "route.tool.seconds": "timeout",
        "route.tool.sound": "filler_sound",
        "route.transfer.allow": "allowed_numbers",
        "route.transfer.ring_seconds": "ring_timeout",
        "tool.after_seconds": "filler_delay",
        "tool.max_result": "max_result_chars",
        "tool.say": "filler_text",
        "tool.seconds": "timeout",
        "tool.sound": "filler_sound",
        "tools.folder": "search_path",
        "tools.max_result": "max_result_chars",
        "tools.mcp.after_seconds": "filler_delay",
        "tools.mcp.connect_seconds": "connect_timeout",
        "tools.mcp.run": "client",
        "tools.mcp.say": "filler_text",
        "tools.mcp.seconds": "timeout",
        "tools.seconds": "timeout",
        "trunk.concurrent_calls": "max_concurrent_calls",
    }
)
"""Full path of the old key (without indexes), and the name that it has in its place."""

_NO_JITTER_BUFFER = (
    "no jitter buffer is between the caller and the model any more; "
    "packet_wait_ms says how long a missing packet is waited for"
)

_LISTEN = 'listen has it: listen = ["udp:0.0.0.0:5060"]'

ABSENT_KEYS: Mapping[str, str] = MappingProxyType(
    {
        f"{section}.jb_{key}": _NO_JITTER_BUFFER
        for section in ("media", "trunk")
        for key in ("init_ms", "min_ms", "max_ms", "catch_up")
        if (section, key) != ("media", "catch_up")
    }
    | {f"sip.{key}": _LISTEN for key in ("address", "bind", "host", "port", "transport")}
    | {
        f"{section}.{key}": f"it belongs in the session of a route: [route.session] {place} = ..."
        for section in ("realtime", "route")
        for key, place in (
            ("instructions", "instructions"),
            ("turn_detection", "audio.input.turn_detection"),
            ("voice", "audio.output.voice"),
        )
    }
    | {
        f"trunk.{key}": 'peers has it: peers = ["192.0.2.1"]; where it registers: registrar'
        for key in ("address", "addresses", "host", "hosts", "ip", "peer", "server")
    }
    | {
        f"trunk.{key}": 'registrar has it: registrar = "sip.example.net"'
        for key in ("domain", "register")
    }
    | {
        f"trunk.{key}": "it is called username"
        for key in ("user", "login", "auth_user", "defaultuser")
    }
    | {f"trunk.{key}": "it is called password" for key in ("secret", "pass")}
    | {  # an Asterisk's
        "trunk.context": 'routes say whose calls they take: [[route]] trunk = "pbx"',
        "trunk.insecure": "peers are known by their address: leave it out",
        "trunk.nat": "RTP goes where it comes from: leave it out; for SDP: sip.public_address",
        "trunk.type": "a trunk has no type: leave it out",
    }
    | {
        f"{section}.tos_{key}": f'sip.{new} has it: {new} = "{value}"'
        for section in ("sip", "trunk")
        for key, new, value in (("audio", "rtp_dscp", "ef"), ("sip", "dscp", "cs3"))
    }
    | {f"trunk.{key}": "it is called caller_id" for key in ("callerid", "fromuser", "from_user")}
    | {f"trunk.{key}": 'codecs has it: codecs = ["PCMA"]' for key in ("allow", "disallow")}
    | {f"trunk.{key}": "options_interval has it (s)" for key in ("qualify", "qualify_frequency")}
    | {
        f"trunk.{key}": "all kinds are taken; how it is sent: [route.send_dtmf] mode"
        for key in ("dtmf_mode", "dtmfmode")
    }
    | {
        f"trunk.{key}": 'srtp has it: srtp = "required"'
        for key in ("encryption", "media_encryption")
    }
    | {f"trunk.{key}": "it is called outbound_proxy" for key in ("outboundproxy", "proxy")}
    | {
        f"route.greeting.{key}": 'words: say = "Hello."; a WAV file: clip = "hello.wav"'
        for key in ("text", "message", "play", "file", "audio", "sound")
    }
    | {
        f"route.{key}": 'to has it: to = "^100$"'
        for key in ("number", "extension", "did", "called")
    }
    | {
        "route.recording.enabled": 'mode has it: mode = "always"',
        "route": "routes stand in files of dialplan.folder",
        "session": "the session object stands in a route: [route.session]",
        "callbacks.file": "callbacks are kept in records.database, or else in records.folder",
        "sip.codecs": "a trunk has it: trunk.codecs",
    }
)
"""Full path of a key that is not there, and why, or where to find what it stands for."""

RENAMED_VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("access.unknown_sources", "refuse"): "reject",
        ("dialplan.unknown_session_fields", "refuse"): "error",
        ("route.answer.mode", "at_once"): "immediate",
        ("route.answer.mode", "early"): "early_media",
        ("route.answer.mode", "ready"): "when_ready",
        ("route.approval.policy", "caller"): "ask_caller",
        ("route.approval.policy", "http"): "ask_http",
        ("route.approval.policy", "refuse"): "deny",
        ("route.context.strategy", "summary"): "summarize",
        ("route.data.on_failure", "go_on"): "continue",
        ("route.data.on_failure", "refuse"): "reject",
        ("route.fallback.action", "endpoint"): "server",
        ("route.fallback.action", "hang_up"): "hangup",
        ("route.guardrail.action", "say"): "replace",
        ("route.interruptions.mode", "at_once"): "immediate",
        ("route.interruptions.mode", "never"): "disabled",
        ("route.interruptions.mode", "pause"): "adaptive",
        ("route.machine_detection.bot", "hang_up"): "hangup",
        ("route.machine_detection.bot", "note"): "log",
        ("route.machine_detection.bot", "say"): "leave_message",
        ("route.machine_detection.music", "hang_up"): "hangup",
        ("route.machine_detection.music", "note"): "log",
        ("route.machine_detection.music", "say"): "leave_message",
        ("route.machine_detection.voicemail", "hang_up"): "hangup",
        ("route.machine_detection.voicemail", "note"): "log",
        ("route.machine_detection.voicemail", "say"): "leave_message",
        ("tools.mcp.client", "server"): "provider",
    }
)
"""Full path of the key and its old value, and the value's name now."""

_STATEMENT = re.compile(r"""\s*[\w."'-]+\s*(?P<sign>[=:])\s*(?P<value>.*?)\s*$""")


def syntax_hint(line: str, message: str, column: int = 0) -> str:
    """Return a correction for a line that the TOML parser refuses, "" where none is known.

    Args:
        column: where the parser stopped, from 1; 0 where it does not say.
    """
    odd = line[column - 1 : column] if column else ""
    if odd and not odd.isascii() and unicodedata.category(odd) in ("Zs", "Cf"):
        name = unicodedata.name(odd, "a character that is not seen").lower()
        return f"; {name} (U+{ord(odd):04X}), as web pages have it, is no space of TOML"
    if message.startswith("Cannot overwrite"):
        what = "[[route]] comes before its tables, and " if "[[" in line else ""
        return f"; {what}no key may be set twice"
    if message.startswith("Cannot declare"):
        return "; put the keys of both into one table"
    found = _STATEMENT.match(line)
    value = found["value"] if found else ""
    if found and found["sign"] == ":":
        return '; write name = "value"'
    if line.lstrip().startswith(("//", "/*", ";", "--")):
        return "; a comment begins with #"
    if value[:1] in tuple("\u201c\u201d\u201e\u2018\u2019\u00ab"):
        return f'; {value[0]} is no quotation mark of TOML: write "'
    if message.startswith("Unclosed array"):
        return "; commas stand between elements, and ] behind the last"
    if message.startswith("Unterminated string"):
        return '; the closing """ is missing'
    if message.startswith("Unescaped"):
        return "; write \\\\ for a backslash, or put the text in single quotes"
    if value[:1] in ('"', "'") and value.count(value[0]) == 1:
        return (
            f"; the closing {value[0]} is missing (text of several lines stands in {value[0] * 3})"
        )
    if value in ("True", "False", "yes", "no", "on", "off"):
        return "; write true or false"
    if value[:1].isalpha():
        return "; text stands in quotation marks"
    return ""
