# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells systemd how a service of ``Type=notify`` is doing (sd_notify(3))."""

from __future__ import annotations

import os
import socket

import structlog

log = structlog.get_logger("gateway")

_VARIABLE = "NOTIFY_SOCKET"


def notify(*lines: str) -> None:
    """Send e.g. ``READY=1`` to systemd; do nothing where ``NOTIFY_SOCKET`` is not set."""
    address = os.environ.get(_VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("gateway.notify_failed", error=str(error))


def without_notify(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment for a child process, which must not notify systemd."""
    return {name: value for name, value in environ.items() if name != _VARIABLE}
