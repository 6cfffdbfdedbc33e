# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of `gateway`."""

from __future__ import annotations

from pathlib import Path

import click

CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file.",
)


def examples(*lines: str) -> str:
    """Return the epilog of a command's help with these command lines."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])
