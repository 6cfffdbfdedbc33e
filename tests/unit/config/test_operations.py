# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of calls, and who is told, in ``gateway.toml``: what each section may not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.operations import ApiSettings
from tests.unit.config.test_config import LOCAL, load, the_problem

HASH = f'hash = "sha256:{"0" * 64}"'
UPLOAD = 'bucket = "calls"\naccess_key = "a"\nsecret_key = "s"\n'


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ('[records]\ndatabase = "mysql://h/n"', 2, "records.database", 'must be "sqlite:///FILE"'),
        ('[records]\ndatabase = "postgresql://h/"', 2, "records.database", "USER:PASSWORD@HOST"),
        ('[records]\ndatabase = "postgresql://h/n"', 1, "records.folder", "wait there while"),
        ('[records]\nredact = ["names"]', 2, "records.redact[0]", "'numbers'"),
        ('[records]\nredact_patterns = ["("]', 2, "records.redact_patterns[0]", "missing )"),
        ('[recording]\nmode = "always"', 1, "recording.folder", "recordings are written there"),
        ('[recording]\nrecipients = ["age1x"]', 2, "recording.recipients[0]", "a public key"),
        (
            f'[recording]\nfolder = "r"\n[recording.upload]\nendpoint = "https://h/x"\n{UPLOAD}',
            4,
            "recording.upload.endpoint",
            "scheme and host only",
        ),
        (
            f'[recording]\nfolder = "r"\n[recording.upload]\nendpoint = "http://h"\n{UPLOAD}',
            4,
            "recording.upload.endpoint",
            "must begin with https://",
        ),
        ('[api]\nlisten = "8080"', 2, "api.listen", "an address and a port"),
        ('[api]\nlisten = "127.0.0.1:65536"', 2, "api.listen", "an address and a port"),
        ('[api]\nlisten = "localhost:80"', 2, "api.listen", "not a name"),
        ('[api]\nlisten = "0.0.0.0:80"', 2, "api.listen", "tokens in plain text over a network"),
        ('[api]\nlisten = "[::]:80"', 2, "api.listen", "tokens in plain text over a network"),
        (
            '[[api.token]]\nname = "a"\nrole = "admin"\nhash = "secret"',
            4,
            "api.token[0].hash",
            "is no hash of a token",
        ),
        (
            f'[[api.token]]\nname = "a"\nrole = "admin"\n{HASH}\n' * 2,
            6,
            "api.token[1].name",
            "is used twice",
        ),
        (
            f'[[api.token]]\nname = "a"\nrole = "operator"\n{HASH}\nroutes = ["r"]',
            5,
            "api.token[0].routes",
            'without role = "application"',
        ),
        (
            '[records]\nfolder = "r"\n[[webhook]]\nname = "a"\nurl = "https://h"\n'
            'secret = "whsec_c2hvcnQ="',
            6,
            "webhook[0].secret",
            "24 to 64 bytes",
        ),
        (
            '[records]\nfolder = "r"\n[[webhook]]\nname = "a"\nurl = "https://h"\n'
            f'secret = "{"QUFB" * 8}"',
            6,
            "webhook[0].secret",
            'must be "whsec_"',
        ),
        ("[tracing]\nsample_ratio = 1.5", 2, "tracing.sample_ratio", "less than or equal to 1"),
        ("[shared]\ntimeout_ms = 9", 2, "shared.timeout_ms", "greater than or equal to 10"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, line: int, key: str, message: str) -> None:
    at, name, said = the_problem(tmp_path, f"{LOCAL}{text}\n")
    assert (at, name) == (LOCAL.count("\n") + line, key)
    assert message in said


@pytest.mark.parametrize(
    ("records", "url", "spool"),
    [
        ("", None, None),
        ('folder = "r"', "sqlite:///{}/r/calls.sqlite3", "r"),
        ('database = "sqlite:///d/c.db"', "sqlite:///{}/d/c.db", "d"),
        ('database = "sqlite:///d/c.db"\nfolder = "r"', "sqlite:///{}/d/c.db", "r"),
        ('database = "postgresql://u:pw@h/n"\nfolder = "r"', "postgresql://u:pw@h/n", "r"),
    ],
)
def test_where_records_are_kept_and_wait(
    tmp_path: Path, records: str, url: str | None, spool: str | None
) -> None:
    kept = load(tmp_path, f"{LOCAL}[records]\n{records}\n").records
    assert kept.database_url == (None if url is None else url.format(tmp_path))
    assert kept.spool_folder == (None if spool is None else tmp_path / spool)
    assert kept.secrets() == (("postgresql://u:pw@h/n", "pw") if "pw" in records else ())


@pytest.mark.parametrize(
    ("listen", "of_third"),
    [("127.0.0.1:8080", "127.0.0.1:8082"), ("[::1]:80", "[::1]:82"), ("127.0.0.1:0", None)],
)
def test_each_worker_has_a_port_of_the_api(listen: str, of_third: str | None) -> None:
    assert ApiSettings(listen=listen).shifted(2).listen == (of_third or listen)
    assert ApiSettings(listen="").shifted(2).listen is None


def test_the_api_on_a_network_where_that_is_wanted(tmp_path: Path) -> None:
    text = '[api]\nlisten = "0.0.0.0:8080"\nallow_plaintext = true\n'
    assert load(tmp_path, LOCAL + text).api.listen == "0.0.0.0:8080"
