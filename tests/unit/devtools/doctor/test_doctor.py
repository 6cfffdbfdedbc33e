# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway doctor`` finds, with real ports, sockets, servers and the pjsua2 that is here."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import socket
import ssl
import subprocess
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli.configure import doctor as command
from gateway.devtools.doctor import Finding, Verdict, lines, network
from gateway.devtools.doctor import examine as machine
from gateway.devtools.emulator import Emulator
from gateway.dialplan import Dialplan
from gateway.planning.check import load_all
from gateway.sip.library import (
    DESCRIPTORS_PER_CALL,
    descriptor_limits,
    descriptors_needed,
    raise_descriptor_limit,
)
from tests.support.emulator_client import with_emulator
from tests.support.http_service import self_signed

BUILD: dict[str, Any] = {
    "distribution": "pjsua2-gateway 2.17",
    "version": "2.17",
    "path": "/somewhere/_pjsua2.so",
    "tls": "OpenSSL 3.0.19 27 Jan 2026",
}
FOUND: dict[str, Any] = {
    "build": BUILD,
    "capacity": 1280,
    "trunks": 127,
}


def write(folder: Path, text: str = "", url: str = "ws://127.0.0.1:9/v1/realtime") -> Path:
    (folder / "dialplans").mkdir(exist_ok=True)
    route = '[[route]]\nname = "any"\n'
    (folder / "dialplans" / "10.toml").write_text(route, encoding="utf-8")
    file = folder / "gateway.toml"
    file.write_text(f'[realtime]\nurl = "{url}"\napi_key = ""\n{text}', encoding="utf-8")
    return file


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


@pytest.mark.parametrize(
    ("folder", "verdict"), [("records", Verdict.OK), ("/proc/records", Verdict.BAD)]
)
def test_a_folder_that_nobody_can_write(tmp_path: Path, folder: str, verdict: Verdict) -> None:
    config, _ = load_all(write(tmp_path, f'[records]\nfolder = "{folder}"\n'), {})
    (found,) = (one for one in machine._folders(config) if one.subject == "records.folder")
    assert found.verdict is verdict
    assert not (tmp_path / "records").exists()


def test_a_folder_that_nobody_may_look_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look anywhere, so the system's answer to others stands in."""
    config, _ = load_all(write(tmp_path, '[records]\nfolder = "closed/records"\n'), {})
    stat = Path.stat

    def refused(path: Path, **given: bool) -> os.stat_result:
        if "closed" in path.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **given)

    monkeypatch.setattr(Path, "stat", refused)
    (found,) = (one for one in machine._folders(config) if one.subject == "records.folder")
    assert found.verdict is Verdict.BAD


@pytest.mark.parametrize(
    ("folder", "verdict"), [("gone", Verdict.BAD), ("/run/no-such-unit", Verdict.WARN)]
)
def test_a_control_socket_without_its_folder(tmp_path: Path, folder: str, verdict: Verdict) -> None:
    config, _ = load_all(write(tmp_path, f'[control]\nsocket = "{folder}/g.sock"\n'), {})
    (found,) = (one for one in machine._folders(config) if one.subject == "control.socket")
    assert found.verdict is verdict
    assert "is not there" in found.fact


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_a_database_that_does_not_answer(tmp_path: Path, fail: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        url = f"postgresql://u:secret@127.0.0.1:{silent.getsockname()[1]}/db"
        text = f'[records]\nfolder = "records"\ndatabase = "{url}"\n[shared]\nfail = "{fail}"\n'
        config, _ = load_all(write(tmp_path, text), {})
        (found,) = machine._database(config)
    assert found.verdict is Verdict.BAD
    assert "refused" in found.fact
    assert "secret" not in found.fact
    assert ("calls" in found.advice) is (fail == "closed")


@pytest.mark.parametrize("content", [None, "no database"])
def test_a_file_of_sqlite(tmp_path: Path, content: str | None) -> None:
    config, _ = load_all(write(tmp_path, '[records]\nfolder = "records"\n'), {})
    file = tmp_path / "records" / "calls.sqlite3"
    if content is not None:
        file.parent.mkdir()
        file.write_text(content * 100)
    (found,) = machine._database(config)
    assert found.verdict is (Verdict.OK if content is None else Verdict.BAD)
    assert file.exists() is (content is not None)


@pytest.fixture
def taken() -> Iterator[int]:
    """A UDP port that somebody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("127.0.0.1", 0))
        yield owner.getsockname()[1]


def examine_all(file: Path) -> tuple[int, list[Finding]]:
    """The command's status and report."""
    result = CliRunner().invoke(command, ["-c", str(file), "--json"])
    found = [
        Finding(Verdict(item["verdict"]), item["subject"], item["fact"], item["advice"])
        for item in json.loads(result.stdout)
    ]
    return result.exit_code, found


def examine(file: Path) -> tuple[int, dict[str, Finding]]:
    """The same, one finding of each subject."""
    status, found = examine_all(file)
    return status, by_subject(found)


def test_the_report_on_this_machine(tmp_path: Path) -> None:
    status, found = examine(write(tmp_path, '[sip]\nlisten = ["udp:127.0.0.1:0"]\nmax_calls = 1\n'))
    assert status == 0
    assert {name for name, finding in found.items() if finding.verdict is Verdict.BAD} == set()
    assert "pjproject 2." in found["pjsua2"].fact
    assert found["calls"].verdict is Verdict.OK
    assert set(found) >= {"tls", "python", "cores", "open files", "clock", "time zone"}
    assert "emulator" in found["realtime"].advice


def test_a_wrong_configuration_is_bad_and_the_library_is_judged_all_the_same(
    tmp_path: Path,
) -> None:
    status, found = examine(write(tmp_path, "[sip]\nmax_call = 1\n"))
    assert status == 1
    assert found["config"].verdict is Verdict.BAD
    assert "sip.max_call: unknown key" in found["config"].fact
    assert "pjsua2" in found
    assert "sip port" not in found


@pytest.mark.parametrize(
    ("day", "verdict", "says"),
    [
        ("2020-01-01", Verdict.BAD, "gpt-old ended on 2020-01-01"),
        (None, Verdict.WARN, "gpt-old"),
    ],
)
def test_a_model_that_is_retired_is_bad(
    tmp_path: Path, day: str | None, verdict: Verdict, says: str
) -> None:
    """Past its last day; before that it is a note."""
    soon = (date.today() + timedelta(days=30)).isoformat()
    (tmp_path / "prices.toml").write_text(
        'currency = "USD"\n[[retirement]]\nmatch = ["gpt-old"]\nhosts = ["*"]\n'
        f"on = {day or soon}\n"
    )
    more = 'model = "gpt-old"\n[cost]\nprices = "prices.toml"\n'
    status, found = examine_all(write(tmp_path, more))
    assert [one.verdict for one in found if says in one.fact] == [verdict]
    assert status or verdict is not Verdict.BAD


def test_lines_for_people() -> None:
    shown = lines(
        [
            Finding(Verdict.OK, "pjsua2", "fine"),
            Finding(Verdict.BAD, "sip port", "taken", "free it"),
        ]
    )
    assert shown == ["ok    pjsua2    fine", "bad   sip port  taken", "                -> free it"]


@pytest.mark.parametrize(
    ("changes", "subject", "verdict", "says"),
    [
        ({}, "calls", Verdict.OK, "carries 1280 at a time, sip.max_calls is 100"),
        (
            {"capacity": 4},
            "calls",
            Verdict.WARN,
            "carries 4 at a time, sip.max_calls is 100: more get 503",
        ),
        ({}, "tls", Verdict.OK, "OpenSSL 3.0.19"),
        ({"trunks": 0}, "trunks", Verdict.BAD, "no place for more than 0, and there are 1"),
    ],
)
def test_what_a_build_means(
    tmp_path: Path, changes: dict[str, Any], subject: str, verdict: Verdict, says: str
) -> None:
    trunk = '[[trunk]]\nname = "provider"\npeers = ["192.0.2.1"]\n'
    config, _ = load_all(write(tmp_path, trunk), {})
    finding = by_subject(list(machine.judge_probe({**FOUND, **changes}, config)))[subject]
    assert finding.verdict is verdict
    assert says in finding.fact
    assert bool(finding.advice) is (verdict is not Verdict.OK)


def test_a_library_that_crashes_is_bad_and_takes_nobody_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = subprocess.run

    def crash(_command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return real(["sh", "-c", "echo pj assertion >&2; kill -SEGV $$"], **options)

    monkeypatch.setattr(subprocess, "run", crash)
    (finding,) = machine.check_pjsua2(None)
    assert finding.verdict is Verdict.BAD
    assert finding.fact == "does not work (status -11): pj assertion"


def test_files_that_the_hard_limit_forbids(tmp_path: Path) -> None:
    _, hard = descriptor_limits()
    calls = hard // DESCRIPTORS_PER_CALL
    text = f"[sip]\nmax_calls = {calls}\nrtp_ports = [1024, 65535]\n"
    if calls > 32000:
        pytest.skip(f"the hard limit of open files is {hard}: no configuration reaches it")
    config, _ = load_all(write(tmp_path, text + 'listen = ["udp:127.0.0.1:0"]\n'), {})
    finding = by_subject(list(machine.check_machine(config)))["open files"]
    assert finding.verdict is Verdict.BAD
    assert f"LimitNOFILE={descriptors_needed(calls)}" in finding.advice


def test_the_soft_limit_is_raised_to_what_calls_need() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert raise_descriptor_limit(100)
        assert descriptor_limits()[0] == descriptors_needed(100)
        assert raise_descriptor_limit(1)
        assert descriptor_limits()[0] == descriptors_needed(100), "never lowered"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ports_of_listeners(tmp_path: Path, taken: int) -> None:
    text = f'[sip]\nlisten = ["udp:127.0.0.1:{taken}", "udp:192.0.2.1:5060", "tcp:127.0.0.1:0"]\n'
    with socket.create_server(("127.0.0.1", 0)) as server:
        text += f'[api]\nlisten = "127.0.0.1:{server.getsockname()[1]}"\n'
        config, _ = load_all(write(tmp_path, text), {})
        first, second, third, api = network.listening_ports(config)
    assert (first.verdict, second.verdict, third.verdict) == ("bad", "bad", "ok")
    assert (api.subject, api.verdict) == ("api port", "bad")
    assert first.fact == f"udp:127.0.0.1:{taken} is in use"
    assert second.fact == "udp:192.0.2.1:5060: no address of this machine"


def test_rtp_ports(tmp_path: Path, taken: int) -> None:
    low = taken - taken % 2
    text = f'[sip]\nlisten = ["udp:127.0.0.1:0"]\nmax_calls = 1\nrtp_ports = [{low}, {low + 1}]\n'
    config, _ = load_all(write(tmp_path, text), {})
    finding = network.rtp_ports(config)
    assert finding.verdict is Verdict.BAD
    assert finding.fact == f"{low}-{low + 1}: 0 pairs free, 1 needed"
    config, _ = load_all(write(tmp_path, text.replace("127.0.0.1", "192.0.2.1")), {})
    assert network.rtp_ports(config).advice == "see sip.listen"


def the_server(file: Path) -> Finding:
    config, dialplan = load_all(file, {})
    (finding,) = network.servers(config, dialplan)
    return finding


def asked_at(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: str | None = None,
    scheme: str = "ws",
    dialect: str = "ga",
) -> Finding:
    """What is found at an emulator that demands this key; no traceback is logged."""

    async def main(emulator: Emulator) -> Finding:
        file = write(tmp_path, url=emulator.url().replace("ws", scheme, 1))
        spoken = f'[realtime]\ndialect = "{dialect}"'
        file.write_text(file.read_text().replace("[realtime]", spoken))
        config, dialplan = load_all(file, {})
        (finding,) = await asyncio.to_thread(network.servers, config, dialplan)
        return finding

    found = with_emulator(main, api_key=key)
    assert not [record for record in caplog.records if record.exc_info]
    return found


def test_a_server_that_gives_sessions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finding = asked_at(tmp_path, caplog)
    assert finding.verdict is Verdict.OK, finding
    assert " reached in " in finding.fact
    assert "opens a session of gpt-realtime-2.1" in finding.fact


def test_an_invalid_key_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finding = asked_at(tmp_path, caplog, "sk-right")
    assert finding.verdict is Verdict.BAD
    assert "the API key is not accepted" in finding.fact
    assert "realtime.api_key" in finding.advice


def test_a_dialect_that_the_server_does_not_speak(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finding = asked_at(tmp_path, caplog, dialect="beta")
    assert finding.verdict is Verdict.BAD
    assert finding.advice == 'realtime.dialect = "ga"'


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("step=connect&refuse.code=insufficient_quota", "its account's limits and billing"),
        ("step=upgrade&refuse.http_status=429", "its account's limits and billing"),
        ("step=session.update&refuse.code=unknown_parameter", "is realtime.dialect this server's"),
    ],
)
def test_a_server_that_refuses_what_the_url_has_nothing_to_do_with(
    tmp_path: Path, fault: str, advice: str
) -> None:
    async def main(emulator: Emulator) -> Finding:
        file = write(tmp_path, url=f"{emulator.url()}?refuse.{fault}")
        config, dialplan = load_all(file, {})
        (finding,) = await asyncio.to_thread(network.servers, config, dialplan)
        return finding

    finding = with_emulator(main)
    assert finding.verdict is Verdict.BAD
    assert advice in finding.advice


def test_a_server_without_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finding = asked_at(tmp_path, caplog, "sk-right", "wss")
    assert finding.verdict is Verdict.BAD
    assert "no TLS there (" in finding.fact
    assert "()" not in finding.fact
    assert "ws:// in realtime.url" in finding.advice


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = the_server(write(tmp_path, url=f"wss://127.0.0.1:{port}/v1/realtime"))
    assert finding.verdict is Verdict.BAD
    assert "no answer within" in finding.fact


def test_a_name_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    finding = the_server(write(tmp_path, url="wss://realtime.invalid/v1/realtime"))
    assert finding.verdict is Verdict.BAD
    assert "wss://realtime.invalid: " in finding.fact
    assert "HTTPS_PROXY is not used" in finding.advice


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Certificate and key for 127.0.0.1, signed by themselves, good for three days."""
    return self_signed(tmp_path)


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_and_its_certificate(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    async def opened(*_: object) -> None:
        """A session that can be had."""

    monkeypatch.setattr(network, "_session_failure", opened)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def main() -> list[Finding]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        server = await asyncio.start_server(
            lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context
        )
        port = server.sockets[0].getsockname()[1]
        config, _ = load_all(write(tmp_path, url=f"wss://127.0.0.1:{port}/v1/realtime"), {})
        async with server:
            return await asyncio.to_thread(network.servers, config, Dialplan(()))

    (finding,) = asyncio.run(main())
    if trusted:
        assert finding.verdict is Verdict.WARN
        assert "TLSv1.3, certificate for 3 more days" in finding.fact
    else:
        assert finding.verdict is Verdict.BAD
        assert "self-signed certificate" in finding.fact
