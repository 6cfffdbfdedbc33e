# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a call, made readable: as text and as a picture."""

from gateway.devtools.timeline.story import Record, RecordError, Story, read_record, tell

__all__ = ["Record", "RecordError", "Story", "read_record", "tell"]
