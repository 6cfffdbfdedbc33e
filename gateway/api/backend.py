# SPDX-License-Identifier: GPL-2.0-or-later
"""What the API needs of the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.control.server import Command

if TYPE_CHECKING:
    from gateway.api.feed import EventFeed
    from gateway.records.database import Database
    from gateway.records.webhooks import WebhookSender


@dataclass(frozen=True, slots=True)
class Backend:
    """The process, as the API sees it. Everything is called on the event loop."""

    commands: Mapping[str, Command]
    """Those of the control socket, by name."""
    live: Callable[[], list[dict[str, Any]]]
    """A row for each call in progress, the newest last."""
    database: Callable[[], Database] | None
    """Makes a connection for queries; None where no calls are kept."""
    feed: EventFeed
    ready: Callable[[], Mapping[str, str]]
    """Why no further call should come here, by part; empty while they should."""
    problems: Callable[[], Mapping[str, str]]
    """What has failed for good, by part."""
    metrics: Callable[[], Awaitable[bytes]]
    """The metrics as Prometheus reads them."""
    drain: Callable[[], None]
    webhooks: WebhookSender | None = None
    """None where no endpoint is configured."""
    reload: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
