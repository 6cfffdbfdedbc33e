# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process keeps and tells of its calls: records, recordings, webhooks, traces."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.app.tracing import Tracing
from gateway.config import Config
from gateway.config.values import shown
from gateway.dialplan import Dialplan
from gateway.records.black_boxes import BlackBoxes
from gateway.records.database import Database
from gateway.records.event_logs import EventLogs
from gateway.records.files import BackgroundWriter, RecordFiles
from gateway.records.recordings import Options, Recordings
from gateway.records.retention import (
    Storage,
    Uploads,
    each_tried,
    sweep,
    sweep_black_boxes,
    sweep_files,
)
from gateway.records.store import RecordStore
from gateway.records.webhooks import Endpoint, Outbox, WebhookSender
from gateway.sip.signalling import MessageLog

Step = Callable[[], Awaitable[None] | None]
"""A start or stop; one that takes time returns an awaitable."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that keeps or reports data of calls; None for what is not configured."""

    writer: BackgroundWriter
    files: RecordFiles
    records: RecordStore
    tracing: Tracing
    webhooks: WebhookSender | None
    event_logs: EventLogs
    messages: MessageLog
    black_boxes: BlackBoxes
    uploads: Uploads | None
    recordings: Recordings

    def parts(self) -> Iterator[tuple[str, Step | None, Step]]:
        """Yield name, start and stop of each, in the order of their starts."""
        yield ("traces", self.tracing.start, self.tracing.stop)
        if self.webhooks is not None:
            yield ("webhooks", self.webhooks.start, self.webhooks.stop)
        yield ("records", self.records.start, self.records.stop)
        yield ("writer", self.writer.start, self.writer.stop)
        yield ("black boxes", None, self.black_boxes.stop)
        if self.uploads is not None:
            yield ("uploads", self.uploads.start, self.uploads.stop)
        yield ("recordings", self.recordings.start, self.recordings.stop)

    def recordings_as_json(self) -> dict[str, object]:
        """Return the state of recordings and their uploads for ``gateway status``."""
        uploads = {} if self.uploads is None else self.uploads.as_json()
        return {**self.recordings.as_json(), **uploads}


def stores_of(config: Config, dialplan: Dialplan) -> Stores:
    """Make all that keeps or reports data of calls, by the configuration; nothing is started."""
    folder, secrets = config.records.folder, (*config.secrets(), *dialplan.secrets())
    writer, messages = BackgroundWriter(), MessageLog()
    files = RecordFiles(folder, writer)
    records = record_store(config, dialplan, writer, files)
    tracing = Tracing(config.tracing, _instance(config))
    records.listeners.append(tracing.told)
    webhooks = None
    if config.records.spool_folder is not None and config.webhook:
        webhooks = WebhookSender(
            config.records.spool_folder,
            endpoints_of(config),
            lambda: records.forwarder.leading,
            tracing.traceparent,
        )
    uploads = uploads_of(config)
    return Stores(
        writer=writer,
        files=files,
        records=records,
        tracing=tracing,
        webhooks=webhooks,
        event_logs=EventLogs(folder, writer, secrets),
        messages=messages,
        black_boxes=BlackBoxes(folder, writer, messages, secrets),
        uploads=uploads,
        recordings=Recordings(
            recording_options(config), (lambda: None) if uploads is None else uploads.wake
        ),
    )


def _instance(config: Config) -> str:
    """Return the name of this process for records and traces: host and first SIP port."""
    return f"{socket.gethostname()}:{config.sip.listen[0].port}"


def endpoints_of(config: Config) -> tuple[Endpoint, ...]:
    """Return the endpoints of ``[[webhook]]``, with the secrets that sign (new, then previous)."""
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
    settings = config.records

    def idle(database: Database) -> None:
        """Delete rows, details, black boxes and recordings past their days; held ones stay.

        Whatever one of these raises is raised after the others.
        """

        def rows() -> None:
            assert settings.spool_folder is not None
            sweep(
                database,
                settings.spool_folder,
                datetime.now(UTC),
                rows_days=settings.retention_days,
                details_days=settings.details_retention_days,
            )

        def black_boxes() -> None:
            if settings.folder is not None:
                sweep_black_boxes(settings.folder, settings.black_box_files, database.held())

        def recordings() -> None:
            kept = (settings.retention_days, config.recording.retention_days)
            days = [one for one in kept if one]
            if config.recording.folder is not None and days:
                before = datetime.now(UTC) - timedelta(days=min(days))
                sweep_files(config.recording.folder, before, database.held())

        each_tried((rows, black_boxes, recordings))

    masked = {*config.records.redact}
    for route in dialplan.routes:
        masked.update(route.records.redact or ())
    return RecordStore(
        config.records.spool_folder,
        lambda: Database(settings.database_url or ""),
        writer,
        files,
        redact=masked,
        outgoing=Outbox(endpoints_of(config)),
        idle=idle,
        instance=_instance(config),
    )


def recording_options(config: Config) -> Options:
    """Return folder and ways of recording; days of retention only where no database counts them."""
    settings = config.recording
    days = settings.retention_days if config.records.database_url is None else 0.0
    return Options(settings.folder, settings.recipients, settings.upload is not None, days)


def uploads_of(config: Config) -> Uploads | None:
    """Return what uploads recordings; None without ``recording.upload`` or a folder."""
    given, folder = config.recording.upload, config.recording.folder
    return None if given is None or folder is None else Uploads(folder, Storage.of(given))
