# SPDX-License-Identifier: GPL-2.0-or-later
"""How several workers share the ports of one configuration, and when they cannot."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config, ConfigError
from gateway.config.sip import ListenAddress, PortRange
from gateway.config.source import Problem
from gateway.planning.check import check, load_all

HEAD = '[realtime]\nurl = "ws://127.0.0.1:8765/v1/realtime"\n'


def load(folder: Path, text: str, workers: int | None = None) -> Config:
    (folder / "dialplans").mkdir()
    (folder / "gateway.toml").write_text(HEAD + text, encoding="utf-8")
    return load_all(folder / "gateway.toml", {}, workers=workers)[0]


def the_problem(folder: Path, text: str, workers: int | None = None) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, workers)
    (found,) = caught.value.problems
    assert found.file == folder / "gateway.toml"
    return found


def test_each_worker_has_ports_of_its_own(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        '[sip]\nlisten = ["udp:0.0.0.0:5060", "udp:[::1]:6060"]\nrtp_ports = [20000, 20999]\n'
        '[workers]\ncount = 3\nport_step = 10\n[control]\nsocket = "run/gateway.sock"\n',
    )
    parts = [config.for_worker(index) for index in range(3)]
    assert [part.sip.listen for part in parts] == [
        (ListenAddress("udp", "0.0.0.0", 5060), ListenAddress("udp", "::1", 6060)),
        (ListenAddress("udp", "0.0.0.0", 5070), ListenAddress("udp", "::1", 6070)),
        (ListenAddress("udp", "0.0.0.0", 5080), ListenAddress("udp", "::1", 6080)),
    ]
    assert [part.sip.rtp_ports for part in parts] == [
        PortRange(20000, 20331),
        PortRange(20332, 20663),
        PortRange(20664, 20995),
    ]
    sockets = [part.control.socket for part in parts]
    assert sockets == [tmp_path / "run" / f"gateway-{index}.sock" for index in range(3)]


@given(
    low=st.integers(512, 30000).map(lambda n: 2 * n),
    pairs=st.integers(1, 2000),
    odd=st.integers(0, 1),
    count=st.integers(1, 256),
)
def test_shares_are_equal_even_and_apart(low: int, pairs: int, odd: int, count: int) -> None:
    whole = PortRange(low, low + 2 * pairs - 1 + odd)
    parts = [whole.share(index, count) for index in range(count)]
    assert {part.calls for part in parts} == {pairs // count}
    assert all(part.low % 2 == 0 for part in parts)
    assert all(after.low == before.high + 1 for before, after in itertools.pairwise(parts))
    assert parts[0].low >= whole.low
    assert parts[-1].high <= whole.high


@pytest.mark.parametrize(
    ("text", "workers", "line", "key", "says"),
    [
        (
            "[sip]\nmax_calls = 60\nrtp_ports = [20000, 20199]\n",
            2,
            5,
            "sip.rtp_ports",
            "has room for 50 calls in each of 2 workers (two ports each), "
            "but max_calls is 60 for each",
        ),
        (
            '[sip]\nlisten = ["udp:127.0.0.1:0"]\n[workers]\ncount = 2\n',
            None,
            4,
            "sip.listen[0]",
            "port 0 cannot be shared by 2 workers",
        ),
        (
            '[sip]\nlisten = ["udp:127.0.0.1:5060", "udp:0.0.0.0:5061"]\n',
            2,
            4,
            "sip.listen[0]",
            "worker 1 would have udp:127.0.0.1:5061, which worker 0 has as udp:0.0.0.0:5061; "
            "workers.port_step sets them further apart",
        ),
        (
            '[sip]\nlisten = ["udp:127.0.0.1:19999"]\n',
            2,
            4,
            "sip.listen[0]",
            "worker 1 would have port 20000, one of rtp_ports",
        ),
        (
            '[sip]\nlisten = ["udp:127.0.0.1:65535"]\n',
            2,
            4,
            "sip.listen[0]",
            "worker 1 would have port 65536",
        ),
        (
            '[api]\nlisten = "127.0.0.1:65535"\n',
            2,
            4,
            "api.listen",
            "worker 1 would have port 65536",
        ),
        (
            '[api]\nlisten = "127.0.0.1:5061"\n[sip]\nlisten = ["tcp:127.0.0.1:5060"]\n',
            2,
            6,
            "sip.listen[0]",
            "worker 1 would have tcp:127.0.0.1:5061, which worker 0 has as tcp:127.0.0.1:5061; "
            "workers.port_step sets them further apart",
        ),
        (
            '[api]\nlisten = "127.0.0.1:5060"\n[sip]\nlisten = ["tcp:127.0.0.1:5060"]\n',
            None,
            4,
            "api.listen",
            "collides with sip.listen tcp:127.0.0.1:5060",
        ),
        (
            '[api]\nlisten = "127.0.0.1:5060"\n[sip]\nlisten = ["tcp:0.0.0.0:5060"]\n',
            1,
            4,
            "api.listen",
            "collides with sip.listen tcp:0.0.0.0:5060",
        ),
        (
            '[api]\nlisten = "[::]:5060"\nallow_plaintext = true\n'
            '[sip]\nlisten = ["tcp:127.0.0.1:5060"]\n',
            None,
            4,
            "api.listen",
            "collides with sip.listen tcp:127.0.0.1:5060",
        ),
        (
            '[[trunk]]\nname = "a"\nregistrar = "192.0.2.1"\nusername = "me"\n',
            2,
            5,
            "trunk[0].registrar",
            "each of 2 workers would register there, and every call ring in all of them; "
            "let the proxy in front register",
        ),
        (
            "[workers]\ncount = 0\n",
            None,
            4,
            "workers.count",
            "must be greater than or equal to 1 (is 0)",
        ),
    ],
)
def test_what_cannot_be_shared(
    tmp_path: Path, text: str, workers: int | None, line: int, key: str, says: str
) -> None:
    found = the_problem(tmp_path, text, workers)
    assert (found.line, found.key, found.message) == (line, key, says)


def test_the_same_port_over_udp_and_tcp_is_no_collision(tmp_path: Path) -> None:
    config = load(tmp_path, '[sip]\nlisten = ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5061"]\n', 2)
    assert [str(address) for address in config.for_worker(1).sip.listen] == [
        "udp:127.0.0.1:5061",
        "tcp:127.0.0.1:5062",
    ]


@pytest.mark.parametrize(
    ("api", "sip"),
    [
        ("127.0.0.1:5060", "udp:127.0.0.1:5060"),
        ("127.0.0.1:5060", "tcp:127.0.0.2:5060"),
        ("127.0.0.1:5060", "tcp:[::]:5060"),
        ("127.0.0.1:0", "tcp:127.0.0.1:0"),
    ],
)
def test_the_api_may_be_beside_sip(tmp_path: Path, api: str, sip: str) -> None:
    config = load(tmp_path, f'[api]\nlisten = "{api}"\n[sip]\nlisten = ["{sip}"]\n')
    assert config.api.listen == api


def test_the_api_may_have_any_free_port_in_each_worker(tmp_path: Path) -> None:
    config = load(tmp_path, '[api]\nlisten = "127.0.0.1:0"\n', 2)
    assert config.for_worker(1).api.listen == "127.0.0.1:0"


def test_the_option_takes_the_place_of_the_key(tmp_path: Path) -> None:
    assert load(tmp_path, "[workers]\ncount = 4\n", 2).workers.count == 2


def test_check_tells_the_last_workers_ports(tmp_path: Path) -> None:
    load(tmp_path, "[workers]\ncount = 4\n")
    status, lines = check(tmp_path / "gateway.toml", {})
    assert status == 0
    assert "  workers   4, each for 100 calls; the last one on udp:127.0.0.1:5063" in lines
