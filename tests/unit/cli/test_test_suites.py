# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test``: the results that it writes; exit status 2, and what to do, where there is
nobody to call, or a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.test_suites import _gateway_of, junit, page
from gateway.devtools.call_suites import Expect, load_suites
from gateway.devtools.call_suites.running import CallResult
from gateway.devtools.call_suites.verdicts import Said, judge
from gateway.devtools.scripted_caller import StepReport
from tests.interop.lab.ports import free_port
from tests.unit.devtools.call_suites.test_verdicts import evidence

CALL = '[[call]]\nname = "one"\n[[call.step]]\ndo = "wait_answer"\n'


@pytest.mark.parametrize(
    ("suite", "config", "options", "told"),
    [
        ('[[call]]\nname = "one"\n', None, [], "s.toml:1: call[0]: needs steps"),
        (CALL, None, [], "gateway.toml names no address to call: give --target"),
        (CALL, "[sip]\nlisten = []\n", [], "names no address to call: give --target"),
        (CALL, None, ["--only", "two"], "--only: no call has such a name"),
        (CALL, "[sip\n", ["--target", "sip:127.0.0.1"], "gateway.toml:1: TOML syntax"),
        (CALL, None, ["--target", "sip:"], "is no SIP address; write sip:127.0.0.1:5060"),
        (CALL, None, ["--local", "x"], "names no address to call"),
        (CALL, '[sip]\nlisten = ["udp:0.0.0.0:{port}"]\n', [], "start it: gateway run -c"),
    ],
)
def test_nobody_is_called(
    suite: str, config: str | None, options: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(suite)
    if config is not None:
        port = str(free_port("127.0.0.1"))
        (tmp_path / "gateway.toml").write_text(config.replace("{port}", port))
    told_config = ["-c", str(tmp_path / "gateway.toml")]
    result = CliRunner().invoke(main, ["test", str(tmp_path / "s.toml"), *told_config, *options])
    assert result.exit_code == 2, result.output
    assert told in result.output, result.output


def test_a_gateway_that_names_no_address_is_at_the_default_one(tmp_path: Path) -> None:
    """And the records of one with a database only are waited for."""
    config = tmp_path / "gateway.toml"
    for text, keeps in (("", False), ('[records]\ndatabase = "sqlite:///calls"\n', True)):
        config.write_text(f'[control]\nsocket = "s"\n{text}')
        target, lookup = _gateway_of(config)
        assert target == "sip:127.0.0.1:5060"
        assert lookup._keeps_records is keeps


HOSTILE = "<script>alert('\x00\ud800')</script>"


@pytest.fixture
def results(tmp_path: Path) -> list[CallResult]:
    file = tmp_path / "s.toml"
    file.write_text(
        '[[call]]\nname = "good"\n[[call.step]]\ndo = "wait_answer"\n'
        '[[call]]\nname = "<b>bad</b>"\n[[call.step]]\ndo = "wait_answer"\n'
    )
    good, bad = load_suites([file])
    heard = evidence(
        steps=[StepReport(number=1, step="wait_answer", began_ms=0, took_ms=9, done=False)]
    )
    heard.transcript = [Said("agent", HOSTILE, 1.0)]
    return [
        CallResult(good, evidence(), judge(Expect(), evidence()), tmp_path / "001-good.wav"),
        CallResult(bad, heard, judge(Expect(hears=("pizza",), code=486), heard)),
    ]


def test_junit_is_read_by_a_parser(results: list[CallResult]) -> None:
    junitparser = pytest.importorskip("junitparser")
    read = junitparser.JUnitXml.fromstring(junit(results))
    (suite,) = read
    assert (suite.tests, suite.failures, suite.name) == (2, 1, "s")
    good, bad = suite
    assert (good.name, good.is_passed, good.time) == ("good", True, 20.45)
    assert bad.name == "<b>bad</b>"
    (failure,) = bad.result
    assert failure.message == "code: 200 OK; wanted 486"
    assert "hears: agent said:" in failure.text


def test_the_page_has_verdicts_and_believes_nothing(
    results: list[CallResult], tmp_path: Path
) -> None:
    html = page(results, tmp_path)
    assert "1 of 2 calls passed" in html
    assert 'src="001-good.wav"' in html
    assert "<b>bad" not in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "wait_answer (9 ms, not done)" in html
    assert "http" not in html.replace("http-equiv", "")
