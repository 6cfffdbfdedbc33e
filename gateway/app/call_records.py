# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of calls, made from the configuration."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.config import Config
from gateway.config.values import shown
from gateway.dialplan import Dialplan
from gateway.records.background import BackgroundWriter
from gateway.records.files import RecordFiles
from gateway.records.spool import Spool
from gateway.records.store import RecordStore
from gateway.records.webhooks import Endpoint, Outbox
from gateway.sip.types import Invite

if TYPE_CHECKING:
    from gateway.records.database import Database


def endpoints_of(config: Config) -> tuple[Endpoint, ...]:
    """Return the addresses that are told of events."""
    return tuple(
        Endpoint(
            one.name,
            one.url,
            tuple(key.get_secret_value() for key in (one.secret, one.previous_secret) if key),
            frozenset(one.events),
            shown(one.headers),
        )
        for one in config.webhook
    )


def record_store(
    config: Config, dialplan: Dialplan, writer: BackgroundWriter, files: RecordFiles
) -> RecordStore:
    """Return the store of this process; it keeps nothing where ``[records]`` names no place."""
    url = config.records.database_url or ""

    def database() -> Database:
        from gateway.records.database import Database

        return Database(url)

    settings = config.records

    def idle(database: Database, _spool: Spool) -> None:
        from gateway.records.retention import sweep

        assert settings.spool_folder is not None
        sweep(
            database,
            settings.spool_folder,
            datetime.now(UTC),
            rows_days=settings.retention_days,
            details_days=settings.details_retention_days,
        )

    masked = {*config.records.redact}
    for route in dialplan.routes:
        masked.update(route.records.redact or ())
    return RecordStore(
        config.records.spool_folder,
        database,
        writer,
        files,
        redact=masked,
        outgoing=Outbox(endpoints_of(config)),
        idle=idle,
        instance=f"{socket.gethostname()}:{config.sip.listen[0].port}",
    )


def facts_for_slot(invite: Invite) -> Mapping[str, Any]:
    """What is kept of an INVITE before its first provisional response."""
    return {
        "direction": "inbound",
        "sip_call_id": invite.sip_call_id,
        "from_uri": invite.from_uri,
        "to_uri": invite.to_uri,
        "source": invite.source,
        "trunk": invite.trunk,
        "transport": invite.transport,
    }
