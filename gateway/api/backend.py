# SPDX-License-Identifier: GPL-2.0-or-later
"""What the API needs of the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gateway.control.server import Command

if TYPE_CHECKING:
    from gateway.api.feed import EventFeed
    from gateway.api.tokens import Token
    from gateway.bridge.sideband import Follower, Sideband
    from gateway.records.database import Database
    from gateway.records.webhooks import WebhookSender


class Refusal(Exception):  # noqa: N818 - an answer, not a defect
    """What an application is told: status, and ``code``, ``message`` and ``param`` of the body."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class HostedCalls(Protocol):
    """What applications do with calls. Everything raises Refusal."""

    def accept(self, token: Token, call_id: str, session: Any) -> None: ...
    def reject(self, token: Token, call_id: str, code: int) -> None: ...
    def refer(self, token: Token, call_id: str, target: str) -> None: ...
    def hang_up(self, token: Token, call_id: str) -> None: ...
    def sideband(self, token: Token, call_id: str) -> tuple[Sideband, Follower]: ...


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
    applications: HostedCalls | None = None
    reload: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
