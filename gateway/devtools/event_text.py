# SPDX-License-Identifier: GPL-2.0-or-later
"""Times and colours of calls shown as text, shared by the timeline and the event viewer."""

CALLER, AGENT, RED, DTMF, QUIET = "bright_blue", "cyan", "bold red", "yellow", "dim"


def clock(at_ms: float) -> str:
    """Return milliseconds since the INVITE as ``m:ss.mmm``."""
    minutes, rest = divmod(max(at_ms, 0.0) / 1000, 60)
    return f"{int(minutes)}:{rest:06.3f}"


def ms(value: float) -> str:
    """Return ``6420.0`` as ``6,420 ms``."""
    return f"{value:,.0f} ms"
