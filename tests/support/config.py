# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations of tests, without the dialplans that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.config import Config, ConfigError, judge_config
from gateway.config.source import read_toml


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check a configuration; raises ConfigError with every problem of the file."""
    config, problems = judge_config(read_toml(path, environ))
    if config is None or problems:
        raise ConfigError(problems)
    return config
