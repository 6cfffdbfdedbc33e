# SPDX-License-Identifier: GPL-2.0-or-later
"""Classification of errors, closes and refused handshakes of a realtime server.

The tables hold every code that the service documents or that was seen in the field. Auth and
model errors come as an ``error`` event after a successful upgrade, followed by a close whose
reason is ``<error.type>.<error.code>``: both ways lead to the same verdict here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.realtime.events import ServerError
from gateway.text import whole_number


class Kind(StrEnum):
    """How a failure is handled."""

    FATAL = "fatal"
    """The same attempt fails again: a person must change a key, a model or a setting."""
    RETRYABLE = "retryable"
    """The same attempt may well succeed later or on a new session."""
    BENIGN = "benign"
    """Harmless: the session continues, or ended as it should."""
    UNKNOWN = "unknown"
    """A code in no table. A running session logs it and continues."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A classified failure.

    ``code`` is ``error.code``, ``error.type``, the close code as text, ``http <status>``, or one of
    ``timeout``, ``network``, ``tls`` and ``audio_format``; ``meaning`` explains it to an operator.
    ``ends_session``: the session is of no more use, even if its WebSocket is still open.
    """

    kind: Kind
    code: str
    meaning: str
    ends_session: bool = False


def _fatal(meaning: str) -> tuple[Kind, str, bool]:
    """Return a table row: fatal, and the session is over."""
    return Kind.FATAL, meaning, True


def _retryable(meaning: str, *, ends_session: bool = False) -> tuple[Kind, str, bool]:
    """Return a table row: retryable; the session goes on unless ``ends_session``."""
    return Kind.RETRYABLE, meaning, ends_session


def _benign(meaning: str) -> tuple[Kind, str, bool]:
    """Return a table row: harmless; the session goes on."""
    return Kind.BENIGN, meaning, False


ERROR_CODES: dict[str, tuple[Kind, str, bool]] = {
    "invalid_api_key": _fatal("the API key is not accepted"),
    "missing_model": _fatal("no model was named"),
    "invalid_model": _fatal("the model does not do realtime sessions"),
    "model_not_found": _fatal("the model does not exist or the key may not use it"),
    "beta_api_shape_disabled": _fatal("the server no longer takes the Beta protocol"),
    "insufficient_quota": _fatal("the account's quota is used up"),
    "rate_limit_exceeded": _retryable("too many requests or tokens for now"),
    "session_expired": _retryable("the session reached its maximum length", ends_session=True),
    "server_error": _retryable("the server failed on this request"),
    "conversation_already_has_active_response": _benign(
        "a response is still running; create the next one after its response.done"
    ),
    "response_cancel_not_active": _benign("there was no response to cancel"),
    "input_audio_buffer_commit_empty": _benign("less than 100 ms of caller audio to commit"),
    "item_truncate_invalid_item_id": _benign("the item to truncate does not exist"),
    "item_delete_invalid_item_id": _benign("the item to delete does not exist"),
    "item_retrieve_invalid_item_id": _benign("the item to retrieve does not exist"),
    "unsupported_content_type": _benign("the item has no audio to truncate"),
    "invalid_value": _benign("the server refused a value; what carried it had no effect"),
    "missing_required_parameter": _benign("a required field was missing; it had no effect"),
    "unknown_parameter": _benign("the server does not know a field; nothing of it took effect"),
    "cannot_update_voice": _benign("the voice is fixed once heard; the update had no effect"),
    "invalid_event": _benign("the server does not take this event"),
    "invalid_json": _benign("the server could not read an event"),
    "account_deactivated": _fatal("the account is deactivated"),
    "billing_hard_limit_reached": _fatal("the account's spending limit is reached"),
    "forbidden": _benign("the key may not use a voice or a feature; it had no effect"),
    "immutable_field_update": _benign("this setting cannot be changed; it stays as it was"),
    "invalid_audio": _benign("audio was not a whole number of samples; it was left out"),
    "context_injection_incomplete": _benign("a text came too late to be heard of"),
    "responses_handoff_incomplete": _benign("the backend used up its tokens"),
    "session_storage_failed": _benign("the session could not be stored; there is no recording"),
    "decision_already_made": _benign("the call was accepted or refused before"),
    "session_id_not_found": _benign("the session does not exist any more"),
    "provider_invite_failed": _benign("the provider could not place the call"),
    "outbound_sip_not_enabled": _benign("the account cannot place calls"),
}
"""``error.code`` → kind, meaning, whether it ends a running session."""

CLOSE_CODES: dict[int, tuple[Kind, str]] = {
    1000: (Kind.BENIGN, "closed normally"),
    1001: (Kind.RETRYABLE, "the server goes away or the session reached its maximum length"),
    1002: (Kind.FATAL, "WebSocket protocol error"),
    1003: (Kind.FATAL, "the server does not take this kind of data"),
    1005: (Kind.RETRYABLE, "closed without a code"),
    1006: (Kind.RETRYABLE, "connection lost"),
    1007: (Kind.FATAL, "data that does not fit its type"),
    1008: (Kind.FATAL, "refused by the server's policy"),
    1009: (Kind.FATAL, "a message was too big"),
    1010: (Kind.FATAL, "a WebSocket extension is missing"),
    1011: (Kind.RETRYABLE, "server error"),
    1012: (Kind.RETRYABLE, "the server restarts"),
    1013: (Kind.RETRYABLE, "the server is busy, try later"),
    1014: (Kind.RETRYABLE, "bad answer from behind a proxy"),
    1015: (Kind.RETRYABLE, "TLS failed"),
    3000: (Kind.FATAL, "not authorised"),
    4000: (Kind.FATAL, "the server refused the session as asked for"),
    4004: (Kind.FATAL, "the model does not exist or the key may not use it"),
}
"""WebSocket close code (RFC 6455 section 7.4 and the service's own) → kind, meaning."""

HANDSHAKE_STATUSES: dict[int, tuple[Kind, str]] = {
    400: (Kind.FATAL, "the server does not take this request (a deployment without realtime?)"),
    401: (Kind.FATAL, "the API key is not accepted"),
    403: (Kind.FATAL, "the API key may not do this"),
    404: (Kind.FATAL, "nothing at this URL: check path, model and deployment"),
    408: (Kind.RETRYABLE, "the server timed out"),
    425: (Kind.RETRYABLE, "the server wants this later"),
    429: (Kind.RETRYABLE, "too many requests for now"),
}
"""HTTP status that refuses the upgrade → kind, meaning; 5xx is retryable, the rest fatal."""


LIVE_ENDS: dict[str, tuple[int, Kind, str]] = {
    "close_requested": (1000, Kind.BENIGN, "closed normally"),
    "remote_hangup": (1000, Kind.BENIGN, "closed normally"),
    "expired": (1001, Kind.RETRYABLE, "the session reached its maximum length"),
    "content": (1008, Kind.RETRYABLE, "the server's content filter ended the session"),
    "connection_lost": (1006, Kind.RETRYABLE, "connection lost"),
}
"""``session.closed.reason`` of a Live session → WebSocket close code that says the same, kind,
meaning."""


def classify_live_end(code: int, reason: str, ended: str | None) -> tuple[int, Verdict]:
    """Return the WebSocket close code that stands for the end of a Live session, and its verdict.

    ``code`` and ``reason`` are those of its WebSocket, for an end without ``session.closed``: then
    even close code 1000 is a loss (1006). ``ended`` is the reason of its ``session.closed``, which
    decides where it came (a reason that is not listed: 1006, unknown); None where it did not.
    """
    if ended is None:
        code = 1006 if code == 1000 else code
        return code, classify_close(code, reason)
    code, kind, meaning = LIVE_ENDS.get(ended, (1006, Kind.UNKNOWN, "an end it does not explain"))
    return code, Verdict(kind, ended or str(code), meaning, ends_session=True)


def class_of(verdict: Verdict) -> str:
    """Return the code of a verdict as label of a metric: ``other`` where it is in no table, so that
    a server cannot make labels."""
    code = verdict.code
    number = whole_number(code.removeprefix("http "), 4)
    listed = (
        code in ERROR_CODES
        or code in LIVE_ENDS
        or number in CLOSE_CODES
        or number in HANDSHAKE_STATUSES
        or number in range(500, 505)
    )
    return code if listed or code in ("timeout", "network", "tls", "audio_format") else "other"


def classify_error(error: ServerError) -> Verdict:
    """Return the verdict on an ``error`` event in a running session; before that, apply
    :func:`at_setup`, too.

    Looked up by ``error.code``, then by ``error.type``; else :attr:`Kind.UNKNOWN`, which does not
    end the session.
    """
    code = error.code or error.type or "error"
    for key in (error.code, error.type):
        if key is not None and key in ERROR_CODES:
            kind, meaning, ends_session = ERROR_CODES[key]
            return Verdict(kind, code, meaning, ends_session)
    return Verdict(Kind.UNKNOWN, code, "an error this gateway does not know")


def classify_close(code: int, reason: str) -> Verdict:
    """Return the verdict on a closed WebSocket; it always ends the session.

    First by an error code at the end of the close reason
    (``invalid_request_error.invalid_api_key``), unless that is benign or the close code is 1000;
    then 1001 with "maximum duration" as expiry of the session; then by the close code, unknown
    where no table has it.
    """
    named = reason.strip().rpartition(".")[2]
    if code != 1000 and named in ERROR_CODES and ERROR_CODES[named][0] is not Kind.BENIGN:
        kind, meaning, _ = ERROR_CODES[named]
        return Verdict(kind, named, meaning, ends_session=True)
    if code == 1001 and "maximum duration" in reason:
        kind, meaning, _ = ERROR_CODES["session_expired"]
        return Verdict(kind, "session_expired", meaning, ends_session=True)
    if code in CLOSE_CODES:
        kind, meaning = CLOSE_CODES[code]
        return Verdict(kind, str(code), meaning, ends_session=True)
    return Verdict(Kind.UNKNOWN, str(code), "a close code this gateway does not know", True)


def classify_handshake(status: int) -> Verdict:
    """Return the verdict on a WebSocket upgrade that was refused with HTTP ``status``: by the
    table, else 5xx is retryable, and all others, redirects too, are fatal."""
    code = f"http {status}"
    if status in HANDSHAKE_STATUSES:
        kind, meaning = HANDSHAKE_STATUSES[status]
    elif status >= 500:
        kind, meaning = Kind.RETRYABLE, "the server failed on the request"
    elif 300 <= status < 400:
        # Following one would hand the key to whoever it points to.
        kind, meaning = Kind.FATAL, "the server redirects; name its new URL in the settings"
    else:
        kind, meaning = Kind.FATAL, "the server does not open a WebSocket here"
    return Verdict(kind, code, meaning, ends_session=True)


def classify_network(error: BaseException) -> Verdict:
    """Return the verdict on an error of DNS, TCP, TLS, HTTP or the deadline, before the upgrade:
    errors of TLS are fatal, all others retryable."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Verdict(Kind.FATAL, "tls", "the server's certificate is not trusted", True)
    if isinstance(error, ssl.SSLError):
        return Verdict(Kind.FATAL, "tls", "TLS could not be agreed on", True)
    if isinstance(error, TimeoutError):
        return Verdict(Kind.RETRYABLE, "timeout", "no answer in time", True)
    if not isinstance(error, OSError | EOFError):
        return Verdict(Kind.RETRYABLE, "network", "what answers is no WebSocket server", True)
    return Verdict(Kind.RETRYABLE, "network", "the server cannot be reached", True)


def at_setup(verdict: Verdict) -> Verdict:
    """Return the verdict on the same failure during set-up: fatal or retryable, and it ends the
    session.

    An error that a running session survives leaves a set-up without its settings, so benign and
    unknown ones are fatal; only close code 1000 is retryable.
    """
    if verdict.kind in (Kind.FATAL, Kind.RETRYABLE):
        return replace(verdict, ends_session=True)
    kind = Kind.RETRYABLE if verdict.code == "1000" else Kind.FATAL
    return replace(verdict, kind=kind, ends_session=True)


class Step(StrEnum):
    """Stages of a set-up: the connection, then the event that each waits for."""

    CONNECT = "connect"
    CREATED = "session.created"
    STARTED = "session.started"
    UPDATED = "session.updated"


class SetupFailed(Exception):  # noqa: N818 - names what happened to the call
    """A session could not be set up.

    Args:
        verdict: fatal or retryable; see :func:`at_setup`.
        step: the event that was waited for.
        detail: of the failure, without secrets.
    """

    retry_after: float | None = None
    """Seconds of the server's ``Retry-After`` header, if it had one."""

    def __init__(self, verdict: Verdict, step: Step, detail: str) -> None:
        self.verdict = verdict
        self.step = step
        self.detail = detail
        super().__init__(
            f"realtime session not up, waiting for {step}: "
            f"{verdict.meaning} ({verdict.code}{': ' if detail else ''}{detail})"
        )
