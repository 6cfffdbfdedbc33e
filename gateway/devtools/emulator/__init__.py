# SPDX-License-Identifier: GPL-2.0-or-later
"""An embedded Realtime server to develop, test and demonstrate against. No model is behind it.

It needs the ``devtools`` extra (voice activity detection, resampling, speech synthesis), so
nothing of it is imported before it is used.
"""

from __future__ import annotations

from pathlib import Path


def run(
    listen: str, script: Path | None = None, record: Path | None = None, text_model: str = ""
) -> None:
    """Serve on ``listen`` (``HOST:PORT``) until SIGINT or SIGTERM: ``gateway emulator``.

    ``script`` is a TOML or JSON file (see ``script.py``), ``record`` a folder that gets an event
    log and the caller's audio of each session; ``text_model`` is where the text model is served,
    if at all. Raises ``ValueError`` for a bad address or
    script, ``OSError`` when the address cannot be bound.
    """
    from gateway.devtools.emulator import server

    server.run(listen, script, record, text_model)
