# SPDX-License-Identifier: GPL-2.0-or-later
"""Webhooks: events of calls, signed (Standard Webhooks), delivered at least once, in no order.

A delivery is committed to the spool together with the row of its call. One of the processes on a
folder sends; a receiver drops a ``webhook-id`` that it has seen.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import uniform
from typing import TYPE_CHECKING, Any

import structlog

from gateway.measures import REQUEST, Distribution
from gateway.records.spool import Delivery, Spool
from gateway.tasks import TaskSet
from gateway.text import json_text, unicode_in, whole_number

if TYPE_CHECKING:
    import httpx

ATTEMPT_SECONDS = 10.0
PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0)
"""Seconds from one try to the next, or up to a quarter more, so that deliveries that failed at the
same time are not tried at the same time; later tries come every hour."""
HOUR = 3600.0
MAX_AGE = 72 * HOUR
"""Age (s) at which a delivery is given up."""
AT_ONCE = 16
"""Requests under way at a time."""
PER_ENDPOINT = 4
DUE_AT_ONCE = 100
"""Deliveries of one endpoint that have a task at a time; ``PER_ENDPOINT`` of them are sent."""
CLOSE_SECONDS = 2.0
LOOK_SECONDS = 1.0
TRANSIENT = frozenset({408, 425, 429})
"""4xx statuses after which a delivery is tried again."""
GONE = 410
"""Status by which an endpoint refuses all deliveries: they are given up without a request."""
MAX_ANSWER = 64 * 1024
"""Bytes of an answer that is read, so that its connection serves the next delivery, too."""

log = structlog.get_logger("webhooks")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Receiver of events of the types ``events``; two ``secrets`` during a change of keys."""

    name: str
    url: str
    secrets: tuple[str, ...]
    events: frozenset[str]
    headers: Mapping[str, str]


def signature(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header field ``webhook-signature`` (Standard Webhooks): a ``v1`` signature for
    each of ``secrets``, separated by spaces.

    Args:
        timestamp: Unix time (s), as in ``webhook-timestamp``.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.new(_key(one), signed, hashlib.sha256).digest()).decode()
        for one in secrets
    )


def _key(secret: str) -> bytes:
    """Return the key of a secret: base64 behind ``whsec_``, otherwise the secret's own bytes."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"))
    return secret.encode()


class Outbox:
    """Makes the deliveries of an event to endpoints. From any thread."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    def __call__(self, event: Mapping[str, Any]) -> Sequence[Delivery]:
        """Return a delivery, due now, for each endpoint that has subscribed to the event's type;
        none if no endpoint has. An event of a call has ``call_id`` and ``sequence`` in its data."""
        wanted = [one for one in self._endpoints if event["type"] in one.events]
        if not wanted:
            return ()
        data = dict(event["data"])
        if event["call_id"]:
            data = {"call_id": event["call_id"], "sequence": event["sequence"], **data}
        told = {"type": event["type"], "timestamp": event["at"], "data": data}
        body = json_text(unicode_in(told))
        now = time.time()
        return [Delivery(event["id"], one.name, event["call_id"], body, now, now) for one in wanted]


class WebhookSender:
    """Sends the deliveries in the spool that are due. Lives on the event loop.

    Args:
        folder: of the spool, which is read on threads.
        leading: returns whether this process is the one of the folder that sends.
        traceparent: returns that header field (W3C Trace Context) for a call's id; "" for none.
    """

    def __init__(
        self,
        folder: Path,
        endpoints: Sequence[Endpoint],
        leading: Callable[[], bool],
        traceparent: Callable[[str], str] = lambda _call_id: "",
    ) -> None:
        self.results: Counter[tuple[str, str]] = Counter()
        """Number of tries, by endpoint and result: delivered, failed, dead."""
        self.seconds = {one.name: Distribution(REQUEST) for one in endpoints}
        """Durations of requests (s), by endpoint."""
        self._endpoints = {one.name: one for one in endpoints}
        self._spool = Spool(folder)
        self._thread = ThreadPoolExecutor(1, "webhook spool")
        """Of its own: a disk that hangs holds up no other work of the process."""
        self._leading = leading
        self._traceparent = traceparent
        self._led = False
        self._tasks, self._sending = TaskSet(), TaskSet()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._each = {one.name: asyncio.Semaphore(PER_ENDPOINT) for one in endpoints}
        self._under_way: set[tuple[str, str]] = set()
        self._gone: set[str] = set()
        """Endpoints that have answered 410."""
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Begin to deliver; nothing if there are no endpoints."""
        if not self._endpoints:
            return
        import httpx

        self._client = httpx.AsyncClient(
            timeout=ATTEMPT_SECONDS, follow_redirects=False, trust_env=False
        )
        self._tasks.serve(self._run, "webhooks")

    async def stop(self) -> None:
        """Start what is due, wait half of ``ATTEMPT_SECONDS`` for requests under way, then cancel
        them and close; the rest stays in the spool for the next start."""
        if self._client is None:
            return
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS / 2):
                if self._led:
                    await self._send_due()
                await self._sending.wait()
        except (TimeoutError, OSError, sqlite3.Error):
            log.warning("webhook.left_in_spool", under_way=len(self._under_way))
        await self._tasks.cancel()
        await self._sending.cancel()
        await self._client.aclose()
        # Not on this thread: one whose task was cancelled may still read, from a disk that hangs.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._on_spool(lambda spool: spool.close())
        self._thread.shutdown(wait=False)

    async def deliveries(self, *, dead: bool) -> list[Delivery]:
        """Return the deliveries that wait, or with ``dead`` those that were given up."""
        found: list[Delivery] = await self._on_spool(lambda spool: spool.deliveries(dead=dead))
        return found

    async def waiting(self) -> dict[str, tuple[int, float | None, int]]:
        """Return, for each configured endpoint, the number of deliveries that wait, when the oldest
        was created (Unix time, s; None without any), and the number of those given up."""
        found: dict[str, tuple[int, float | None, int]] = await self._on_spool(
            lambda spool: spool.waiting()
        )
        return {name: found.get(name, (0, None, 0)) for name in self._endpoints}

    async def resend(self, delivery_id: str) -> int:
        """Try given-up deliveries with this id (``*``: all) again; return their number. Endpoints
        that have answered 410 are asked again, too."""
        self._gone.clear()
        found: int = await self._on_spool(lambda spool: spool.resend(delivery_id, time.time()))
        return found

    async def _run(self) -> None:
        """Send deliveries that are due every ``LOOK_SECONDS``, while this process leads on its
        folder, until cancelled; a spool that fails is logged once and tried again."""
        failing = False
        while True:
            try:
                self._led = self._leading()
                if self._led:
                    await self._send_due()
                failing = False
            except (OSError, sqlite3.Error) as error:
                if not failing:
                    log.error("webhook.spool_failed", error=str(error))
                failing = True
            await asyncio.sleep(LOOK_SECONDS)

    async def _send_due(self) -> None:
        """Start a task for each delivery that is due, unless it has one; ``DUE_AT_ONCE`` at most
        for one endpoint, so that one that hangs does not hold up the others."""
        for delivery in await self._on_spool(lambda spool: spool.due(time.time(), DUE_AT_ONCE)):
            key = (delivery.id, delivery.endpoint)
            if key not in self._under_way:
                self._under_way.add(key)
                self._sending.spawn(self._deliver(delivery), f"webhook {delivery.id}")

    async def _deliver(self, delivery: Delivery) -> None:
        """Send a delivery once a place is free (``PER_ENDPOINT``, ``AT_ONCE``); delete it from the
        spool, or note when it is tried again.

        Given up without a request if its endpoint is not configured any more, or has answered 410
        since the start.
        """
        try:
            endpoint = self._endpoints.get(delivery.endpoint)
            if endpoint is None:
                await self._failed(delivery, "there is no such endpoint any more", None)
                return
            async with self._each[endpoint.name], self._slots:
                if endpoint.name in self._gone:
                    await self._failed(delivery, "the endpoint is gone", None)
                    return
                status, error, wait = await self._attempt(endpoint, delivery)
            if status == GONE:
                self._gone.add(endpoint.name)
                log.error("webhook.gone", endpoint=endpoint.name)
            if error == "":
                await self._on_spool(lambda spool: spool.delivered(delivery))
                self.results[endpoint.name, "delivered"] += 1
                return
            await self._failed(delivery, error, _next_try(delivery, status, wait))
        except (OSError, sqlite3.Error) as error:
            log.error("webhook.spool_failed", error=str(error))
        finally:
            self._under_way.discard((delivery.id, delivery.endpoint))

    async def _attempt(self, endpoint: Endpoint, delivery: Delivery) -> tuple[int, str, float]:
        """Send a delivery once, within ``ATTEMPT_SECONDS``; return status (0: no answer), error (""
        after 2xx) and Retry-After (s; 0 without one, or for a date). Redirects are not followed."""
        import httpx

        assert self._client is not None
        body, now, began = delivery.body.encode(), int(time.time()), time.monotonic()
        headers = {
            **endpoint.headers,
            "content-type": "application/json",
            "user-agent": "sip-realtime-gateway",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(endpoint.secrets, delivery.id, now, body),
            "idempotency-key": delivery.id,
        }
        if parent := self._traceparent(delivery.call_id):
            headers["traceparent"] = parent
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                async with self._client.stream(
                    "POST", endpoint.url, content=body, headers=headers
                ) as answer:
                    length = whole_number(answer.headers.get("content-length", ""))
                    if length is not None and length <= MAX_ANSWER:
                        async for _ in answer.aiter_raw():  # not unpacked: it may be a bomb
                            pass
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            return 0, f"{type(error).__name__}: {error}", 0.0
        finally:
            self.seconds[endpoint.name].observe(time.monotonic() - began)
        wait = float(whole_number(answer.headers.get("retry-after", "")) or 0)
        return answer.status_code, "" if answer.is_success else f"HTTP {answer.status_code}", wait

    async def _failed(self, delivery: Delivery, error: str, due: float | None) -> None:
        """Note a failed try; the next one is ``due`` (Unix time, s), None gives the delivery up.
        The first failure and the end are logged."""
        await self._on_spool(lambda spool: spool.failed(delivery, error, due))
        self.results[delivery.endpoint, "failed" if due else "dead"] += 1
        told = {"endpoint": delivery.endpoint, "id": delivery.id, "error": error}
        if due is None:
            log.error("webhook.dead", **told, call=delivery.call_id, tries=delivery.tries + 1)
        elif delivery.tries == 0:
            log.warning("webhook.failed", **told, call=delivery.call_id)

    async def _on_spool(self, work: Any) -> Any:
        """Return the result of ``work`` with the spool, on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._spool)


def _next_try(delivery: Delivery, status: int, wait: float) -> float | None:
    """Return when to try again (Unix time, s): after the pause of :data:`PAUSES`, or ``wait``
    (Retry-After, s; an hour at most) if that is longer, and up to a quarter more.

    None for never: after a 4xx that is not ``TRANSIENT``, or if it would be older than ``MAX_AGE``.
    """
    if 400 <= status < 500 and status not in TRANSIENT:
        return None
    pause = PAUSES[delivery.tries] if delivery.tries < len(PAUSES) else HOUR
    due = time.time() + max(pause, min(wait, HOUR)) * uniform(1.0, 1.25)
    return due if due - delivery.created <= MAX_AGE else None
