"""Why the user agent could not do what its settings say."""

from __future__ import annotations


class AgentError(Exception):
    """The user agent could not start; the message names the setting and the cause."""
