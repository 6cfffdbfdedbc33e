# SPDX-License-Identifier: GPL-2.0-or-later
"""Load and validate a configuration file; report every problem of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.config.models import Config
from gateway.config.problems import ConfigError, Problem
from gateway.config.realtime import on_loopback
from gateway.config.source import TomlSource, read_toml
from gateway.config.validate import problems_of

_API_KEY = ("realtime", "api_key")
KEY_MISSING = 'missing, and the server is not on this machine (api_key = "" if it wants none)'


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check ``path``; ``environ`` stands in for the process's environment.

    Raises ConfigError with every problem of the file. The dialplans are not read here:
    :func:`gateway.planning.check.load_all` reads both.
    """
    config, problems = judge_config(read_toml(path, environ))
    if config is None or problems:
        raise ConfigError(problems)
    return config


def judge_config(source: TomlSource) -> tuple[Config | None, list[Problem]]:
    """Return the configuration, or None where it is not valid, and every problem of ``source``."""
    _key_not_needed(source)
    problems = list(source.problems)
    folder = source.file.absolute().parent
    try:
        # A table that is not there is validated too: its default folder is relative to this one.
        data = {"dialplan": {}, "tools": {}, **source.data}
        config = Config.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        return None, [*problems, *problems_of(error, Config, source)]
    if not config.dialplan.folder.is_dir():
        problems.append(
            source.problem(("dialplan", "folder"), f"{config.dialplan.folder} is no folder")
        )
    if config.log.file is not None and not config.log.file.parent.is_dir():
        problems.append(source.problem(("log", "file"), "its folder does not exist"))
    problems += _tls_unreadable(config, source)
    realtime = config.realtime
    if realtime.api_key is None and not realtime.on_loopback and _API_KEY not in source.unresolved:
        problems.append(source.problem(_API_KEY, KEY_MISSING))
    return config, problems


def _tls_unreadable(config: Config, source: TomlSource) -> list[Problem]:
    """Return files of ``[sip.tls]`` that cannot be read, where there is a ``tls:`` listener."""
    tls = config.sip.tls
    if not any(address.transport == "tls" for address in config.sip.listen):
        return []
    problems: list[Problem] = []
    for key in ("certificate", "private_key", "ca"):
        path: Path | None = getattr(tls, key)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}"
            problems.append(source.problem(("sip", "tls", key), message))
    return problems


def _key_not_needed(source: TomlSource) -> None:
    """Let the key's variable be unset while the server is on this machine.

    So the same file runs against the emulator without a key, and a live server without one is
    still an error.
    """
    realtime: Any = source.data.get("realtime")
    if _API_KEY not in source.unresolved or not isinstance(realtime, dict):
        return
    url = realtime.get("url")
    try:
        local = isinstance(url, str) and on_loopback(url)
    except ValueError:
        local = False
    if local:
        source.unresolved.discard(_API_KEY)
        source.problems[:] = [item for item in source.problems if item.key != "realtime.api_key"]
        del realtime["api_key"]
