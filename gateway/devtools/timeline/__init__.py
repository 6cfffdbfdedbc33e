"""The record of a call, made readable: as text and as a picture."""

from gateway.devtools.timeline.record import Record, RecordError, read_record
from gateway.devtools.timeline.story import Story, tell

__all__ = ["Record", "RecordError", "Story", "read_record", "tell"]
