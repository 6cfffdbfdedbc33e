# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of failures, a row for each entry."""

from __future__ import annotations

import ssl

import pytest
from websockets.exceptions import InvalidMessage

from gateway.realtime.errors import (
    CLOSE_CODES,
    ERROR_CODES,
    HANDSHAKE_STATUSES,
    Kind,
    Verdict,
    at_setup,
    class_of,
    classify_close,
    classify_error,
    classify_handshake,
    classify_network,
)
from gateway.realtime.events import ServerError

FATAL, RETRYABLE, BENIGN, UNKNOWN = Kind.FATAL, Kind.RETRYABLE, Kind.BENIGN, Kind.UNKNOWN

ERRORS = [
    # code, kind in a running session, ends the session, kind while it is set up
    ("invalid_api_key", FATAL, True, FATAL),
    ("missing_model", FATAL, True, FATAL),
    ("invalid_model", FATAL, True, FATAL),
    ("model_not_found", FATAL, True, FATAL),
    ("beta_api_shape_disabled", FATAL, True, FATAL),
    ("insufficient_quota", FATAL, True, FATAL),
    ("rate_limit_exceeded", RETRYABLE, False, RETRYABLE),
    ("session_expired", RETRYABLE, True, RETRYABLE),
    ("server_error", RETRYABLE, False, RETRYABLE),
    ("conversation_already_has_active_response", BENIGN, False, FATAL),
    ("response_cancel_not_active", BENIGN, False, FATAL),
    ("input_audio_buffer_commit_empty", BENIGN, False, FATAL),
    ("item_truncate_invalid_item_id", BENIGN, False, FATAL),
    ("item_delete_invalid_item_id", BENIGN, False, FATAL),
    ("item_retrieve_invalid_item_id", BENIGN, False, FATAL),
    ("unsupported_content_type", BENIGN, False, FATAL),
    ("invalid_value", BENIGN, False, FATAL),
    ("missing_required_parameter", BENIGN, False, FATAL),
    ("unknown_parameter", BENIGN, False, FATAL),
    ("cannot_update_voice", BENIGN, False, FATAL),
    ("invalid_event", BENIGN, False, FATAL),
    ("invalid_json", BENIGN, False, FATAL),
    ("account_deactivated", FATAL, True, FATAL),
    ("billing_hard_limit_reached", FATAL, True, FATAL),
    ("forbidden", BENIGN, False, FATAL),
    ("immutable_field_update", BENIGN, False, FATAL),
    ("invalid_audio", BENIGN, False, FATAL),
    ("context_injection_incomplete", BENIGN, False, FATAL),
    ("responses_handoff_incomplete", BENIGN, False, FATAL),
    ("session_storage_failed", BENIGN, False, FATAL),
    ("decision_already_made", BENIGN, False, FATAL),
    ("session_id_not_found", BENIGN, False, FATAL),
    ("provider_invite_failed", BENIGN, False, FATAL),
    ("outbound_sip_not_enabled", BENIGN, False, FATAL),
    ("a_code_of_tomorrow", UNKNOWN, False, FATAL),
]


@pytest.mark.parametrize(("code", "kind", "ends", "setup_kind"), ERRORS)
def test_error_codes(code: str, kind: Kind, ends: bool, setup_kind: Kind) -> None:
    verdict = classify_error(ServerError(code, "said so", "invalid_request_error"))
    assert (verdict.kind, verdict.code, verdict.ends_session) == (kind, code, ends)
    assert verdict.meaning
    at = at_setup(verdict)
    assert (at.kind, at.code, at.meaning, at.ends_session) == (
        setup_kind,
        code,
        verdict.meaning,
        True,
    )


def test_every_error_code_has_a_row() -> None:
    assert {row[0] for row in ERRORS} == {*ERROR_CODES, "a_code_of_tomorrow"}


@pytest.mark.parametrize(
    ("code", "found"),
    [("1006", "1006"), ("http 429", "http 429"), ("http 503", "http 503"), ("²", "other"),
     ("1" * 5000, "other"), ("http ²", "other"), ("http 999", "other"), ("tls", "tls")],
)  # fmt: skip
def test_codes_that_are_counted_are_few(code: str, found: str) -> None:
    """A server makes up codes as it likes."""
    assert class_of(Verdict(Kind.UNKNOWN, code, "")) == found


def test_an_error_without_a_code_goes_by_its_type() -> None:
    assert classify_error(ServerError(None, "Oops", "server_error")) == Verdict(
        RETRYABLE, "server_error", "the server failed on this request"
    )
    new = classify_error(ServerError("internal_oops", "Oops", "server_error"))
    assert (new.kind, new.code) == (RETRYABLE, "internal_oops")
    nothing = classify_error(ServerError(None, ""))
    assert (nothing.kind, nothing.code) == (UNKNOWN, "error")


CLOSES = [
    (1000, "", BENIGN, "1000"),
    (1000, "invalid_request_error.invalid_api_key", BENIGN, "1000"),
    (1001, "", RETRYABLE, "1001"),
    (
        1001,
        "Your session hit the maximum duration of 60 minutes.",
        RETRYABLE,
        "session_expired",
    ),
    (1002, "", FATAL, "1002"),
    (1003, "", FATAL, "1003"),
    (1005, "", RETRYABLE, "1005"),
    (1006, "", RETRYABLE, "1006"),
    (1007, "", FATAL, "1007"),
    (1008, "", FATAL, "1008"),
    (1009, "", FATAL, "1009"),
    (1010, "", FATAL, "1010"),
    (1011, "keepalive ping timeout", RETRYABLE, "1011"),
    (1012, "", RETRYABLE, "1012"),
    (1013, "", RETRYABLE, "1013"),
    (1014, "", RETRYABLE, "1014"),
    (1015, "", RETRYABLE, "1015"),
    (3000, "", FATAL, "3000"),
    (3000, "invalid_request_error.invalid_api_key", FATAL, "invalid_api_key"),
    (4000, "", FATAL, "4000"),
    (4000, "invalid_request_error.beta_api_shape_disabled", FATAL, "beta_api_shape_disabled"),
    (4000, "invalid_request_error.missing_model", FATAL, "missing_model"),
    (4000, "invalid_request_error.invalid_model", FATAL, "invalid_model"),
    (4000, "invalid_request_error.rate_limit_exceeded", RETRYABLE, "rate_limit_exceeded"),
    (4000, "invalid_request_error.invalid_value", FATAL, "4000"),
    (4004, "", FATAL, "4004"),
    (4004, "invalid_request_error.model_not_found", FATAL, "model_not_found"),
    (4999, "new", UNKNOWN, "4999"),
]


@pytest.mark.parametrize(("code", "reason", "kind", "verdict_code"), CLOSES)
def test_close_codes(code: int, reason: str, kind: Kind, verdict_code: str) -> None:
    verdict = classify_close(code, reason)
    assert (verdict.kind, verdict.code, verdict.ends_session) == (kind, verdict_code, True)


def test_every_close_code_has_a_row() -> None:
    assert {row[0] for row in CLOSES} == {*CLOSE_CODES, 4999}


def test_a_normal_close_says_so_and_is_tried_again_during_set_up() -> None:
    verdict = classify_close(1000, "")
    assert verdict.meaning == "closed normally"
    assert at_setup(verdict).kind is RETRYABLE


STATUSES = [
    (302, FATAL),
    (400, FATAL),
    (401, FATAL),
    (402, FATAL),
    (403, FATAL),
    (404, FATAL),
    (408, RETRYABLE),
    (425, RETRYABLE),
    (429, RETRYABLE),
    (200, FATAL),
    (500, RETRYABLE),
    (502, RETRYABLE),
    (503, RETRYABLE),
    (504, RETRYABLE),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_handshake_statuses(status: int, kind: Kind) -> None:
    verdict = classify_handshake(status)
    assert (verdict.kind, verdict.code, verdict.ends_session) == (kind, f"http {status}", True)


def test_every_handshake_status_has_a_row() -> None:
    assert {*HANDSHAKE_STATUSES} <= {row[0] for row in STATUSES}


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ConnectionRefusedError(), RETRYABLE, "network"),
        (TimeoutError(), RETRYABLE, "timeout"),
        (ssl.SSLCertVerificationError(), FATAL, "tls"),
        (ssl.SSLError(), FATAL, "tls"),
        (InvalidMessage("no HTTP"), RETRYABLE, "network"),
    ],
)
def test_network_errors(error: Exception, kind: Kind, code: str) -> None:
    verdict = classify_network(error)
    assert (verdict.kind, verdict.code) == (kind, code)
