# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs every examination that the configuration allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gateway.config import Config, ConfigError
from gateway.devtools.doctor import machine, network, trunks
from gateway.devtools.doctor.finding import Finding, bad, ok, warn
from gateway.dialplan import Dialplan
from gateway.planning.check import check, load_all

_NOTE = "  note: "


def examine(path: Path) -> Iterator[Finding]:
    """Everything that can be found out with the configuration at ``path``."""
    config: Config | None = None
    dialplan = Dialplan(())
    try:
        config, dialplan = load_all(path)
    except ConfigError as error:
        for problem in error.problems:
            yield bad("config", str(problem), "the gateway does not start like this")
    else:
        yield from _good(path)
    yield from machine.look_at_pjsua2(config)
    yield from machine.look(config)
    if config is not None:
        yield from _folders(config)
        yield from network.look(config, dialplan)
        yield from trunks.look(config)


def _good(path: Path) -> Iterator[Finding]:
    _, said = check(path)
    yield ok("config", f"{path} is good")
    for line in said:
        if line.startswith(_NOTE):
            yield warn("config", line.removeprefix(_NOTE), "right if it is meant so")


def _folders(config: Config) -> Iterator[Finding]:
    """Whether what the gateway writes can be written."""
    wanted = [
        ("records.folder", config.records.folder),
        ("log.file", config.log.file.parent if config.log.file else None),
        ("control.socket", config.control.socket.parent if config.control.socket else None),
    ]
    for key, folder in wanted:
        if folder is None:
            continue
        there = folder
        while not there.exists():
            there = there.parent
        if os.access(there, os.W_OK | os.X_OK):
            yield ok(key, f"{folder} can be written")
        else:
            user = os.geteuid()
            yield bad(key, f"{there} cannot be written by user {user}", "chown or chmod it")
