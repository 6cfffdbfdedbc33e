# SPDX-License-Identifier: GPL-2.0-or-later
"""A scripted caller: dials, listens, speaks, presses keys, hangs up, and says how it went."""

from gateway.devtools.scripted_caller.report import CallReport, Outcome, RunReport
from gateway.devtools.scripted_caller.run import CallOptions, place_call, place_calls
from gateway.devtools.scripted_caller.script import Script, load_script, simple_script

__all__ = [
    "CallOptions",
    "CallReport",
    "Outcome",
    "RunReport",
    "Script",
    "load_script",
    "place_call",
    "place_calls",
    "simple_script",
]
