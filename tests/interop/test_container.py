# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of ``deploy/container``: built here, run by runc as an engine would, and called."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import Script
from tests.interop.lab.debian import cache, locked
from tests.interop.lab.ports import free_port
from tests.support.gateway_process import Gateway
from tests.support.harness import rtp_range
from tests.support.sip_phone import Phone

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]
NAME = "localhost/sip-realtime-gateway"
BASE = "localhost/debian"
LIMIT_BYTES = 200_000_000

PACKAGES = "binutils,ca-certificates,libopus0,libsrtp2-1,python3,python3-venv,tini"
"""In the base already, so that they are fetched and unpacked once."""

CONFIG = """
[sip]
listen = ["udp:127.0.0.1:0"]
rtp_ports = [{low}, {high}]
[realtime]
url = "{url}"
[dialplan]
folder = "routes"
[records]
folder = "/var/lib/gateway/records"
[control]
socket = "/run/gateway/gateway.sock"
[api]
listen = "127.0.0.1:{api}"
[limits]
drain_timeout = 60
"""

ROUTE = """
[[route]]
name = "greeted"
to = "^100$"
[route.greeting]
say = "Hello."
"""


def run(words: Sequence[str | Path], **more: Any) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        ["nice", "-n3", *words], capture_output=True, text=True, check=False, cwd=PROJECT, **more
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return str(done.stdout)


class Builder:
    """Buildah with images of its own in the cache; it needs no service and no user namespace."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.caches = store / "caches"
        self.caches.mkdir(parents=True, exist_ok=True)
        self._own = ("--root", str(store / "images"), "--runroot", str(store / "run"))

    def __call__(self, *words: str | Path) -> str:
        env = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        return run(["buildah", *self._own, *words], env=env).strip()

    def base(self) -> str:
        """This machine's release of Debian, from its own mirror, as the public image has it."""
        suite = next(
            line.partition("=")[2]
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        )
        name = f"{BASE}:{suite}"
        if name not in self("images", "--format", "{{.Name}}:{{.Tag}}"):
            archive = self.store / f"{suite}.tar"
            left_out = [
                f"--dpkgopt=path-exclude=/usr/share/{f}/*" for f in ("doc", "locale", "man")
            ]
            none = '--aptopt=APT::Install-Recommends "false"'
            run(
                [
                    "mmdebstrap",
                    "--variant=apt",
                    none,
                    *left_out,
                    f"--include={PACKAGES}",
                    suite,
                    archive,
                ]
            )
            made = self("from", "scratch")
            self("add", "--quiet", made, archive)
            self("commit", "--quiet", "--rm", made, name)
            archive.unlink()
        return name

    def build(self) -> None:
        """Build the image, with the caches of this machine and the packages' index that it has."""
        pip = self.store / "pip.conf"
        pip.write_text(
            "[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip_settings())
        )
        own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        wheels = own / "sip-realtime-gateway" / "pjsua2"
        wheels.mkdir(parents=True, exist_ok=True)
        volumes = {
            pip: "/etc/pip.conf:ro",
            self.caches: "/root/.cache/pip",
            wheels: "/root/.cache/sip-realtime-gateway/pjsua2",
            Path(CERTIFICATES): f"{PIP_CERTIFICATES}:ro",
        }
        self(
            *("build", "--format", "docker", "--layers=false", "--quiet", "--tag", NAME),
            *(word for path, at in volumes.items() for word in ("--volume", f"{path}:{at}")),
            *("--build-arg", f"BASE={self.base()}"),
            *("--file", "deploy/container/Containerfile", "."),
        )


CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PIP_CERTIFICATES = "/run/certificates.pem"


def pip_settings() -> Iterator[tuple[str, str]]:
    """What this machine's pip has been told of where packages are."""
    yield "cert", PIP_CERTIFICATES
    for line in run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        key, _, value = line.partition("=")
        key = key.rpartition(".")[2]
        if key in ("index-url", "proxy", "trusted-host"):
            yield key, ast.literal_eval(value)


def missing() -> str:
    """Why no image can be built here; empty where it can."""
    absent = [
        name
        for name in ("buildah", "mmdebstrap", "runc", "systemd-analyze")
        if shutil.which(name) is None
    ]
    if absent:
        return f"not installed: {', '.join(absent)} (make test-container)"
    if os.geteuid() != 0:
        return "building and running a container needs root here"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces of mounts and processes here: {probe.stderr}" if probe.returncode else ""


@pytest.fixture(scope="module")
def built() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The root folder of the image, and what the image says of itself."""
    if why := missing():
        pytest.skip(why)
    store = cache().with_name("container")
    with locked(store):
        buildah = Builder(store)
        buildah.build()
        container = buildah("from", NAME)
        try:
            told = json.loads(buildah("inspect", NAME))["Docker"]["config"]
            yield Path(buildah("mount", container)), told
        finally:
            buildah("rm", container)
            buildah("rmi", NAME)


def test_there_is_little_to_attack(built: tuple[Path, dict[str, Any]]) -> None:
    root, told = built
    assert told["User"] == "10001:10001"
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    print(f"{size / 1e6:.0f} MB")
    assert size < LIMIT_BYTES
    assert [path for path in files if path.stat().st_mode & 0o6000] == []
    assert {path.name for path in files} & {
        "bash",
        "dash",
        "sh",
        "apt-get",
        "dpkg",
        "perl",
        "pip",
    } == set()


def calls_of(group: str) -> set[str]:
    """The system calls of a group of systemd's, which may name other groups."""
    lines = run(["systemd-analyze", "syscall-filter", group]).split("\n")[1:]
    names = {line.strip() for line in lines if line.startswith("    ") and "#" not in line}
    groups = {name for name in names if name.startswith("@")}
    return (names - groups).union(*(calls_of(one) for one in groups))


def allowed_calls() -> list[str]:
    """What ``SystemCallFilter`` of our units leaves."""
    unit = (PROJECT / "deploy" / "systemd" / "gateway.service").read_text(encoding="utf-8")
    allowed: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.+)$", unit, re.M):
        calls = calls_of(value.removeprefix("~"))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    assert "chown" not in allowed
    assert len(allowed) > 200
    return sorted(allowed)


def bundle(folder: Path, root: Path, told: dict[str, Any], mounts: dict[str, Path]) -> None:
    """Tell runc (OCI's runtime-spec) what an engine makes of ``--read-only --cap-drop all``."""
    user, _, group = told["User"].partition(":")
    owner = [f"uid={user}", f"gid={group}", "nosuid", "nodev"]
    temporary = {"/dev": ["nosuid"], "/tmp": ["mode=1777"], "/run/gateway": owner}
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": True},
        "process": {
            "args": [*told["Entrypoint"], *told["Cmd"]],
            "cwd": told["WorkingDir"],
            "env": told["Env"],
            "user": {"uid": int(user), "gid": int(group)},
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            *(
                {"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options}
                for at, options in temporary.items()
            ),
            *(
                {"destination": at, "type": "bind", "source": str(path), "options": ["bind"]}
                for at, path in mounts.items()
            ),
        ],
        # The machine's network, as docs/deployment.md has it; of system calls those of the units.
        "linux": {
            "namespaces": [{"type": name} for name in ("pid", "mount", "ipc", "uts")],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": allowed_calls(), "action": "SCMP_ACT_ALLOW"}],
            },
        },
    }
    (folder / "config.json").write_text(json.dumps(spec))


@asynccontextmanager
async def running(
    built: tuple[Path, dict[str, Any]], folder: Path, emulator: Emulator, api: int
) -> AsyncIterator[tuple[Gateway, list[str]]]:
    """The image's gateway, and the command that runs another program in its container."""
    root, told = built
    low, high = rtp_range()
    settings, state = folder / "etc", folder / "state"
    (settings / "routes").mkdir(parents=True)
    (settings / "routes" / "10-route.toml").write_text(ROUTE)
    config = CONFIG.format(low=low, high=high, url=emulator.url(), api=api)
    (settings / "gateway.toml").write_text(config)
    state.mkdir()
    os.chown(state, 10001, 10001)
    bundle(folder, root, told, {"/etc/gateway": settings, "/var/lib/gateway": state})
    name, runc = f"gateway-{os.getpid()}", ["runc", "--root", str(folder / "runc")]
    command = [*runc, "run", "--bundle", str(folder), name]
    gateway = Gateway(
        settings / "gateway.toml",
        ("-c", f"import os; os.execvp('runc', {command!r})"),
        options=(),
    )
    try:
        await gateway.start()
        yield gateway, [*runc, "exec", name]
    finally:
        gateway.kill()
        await asyncio.to_thread(
            subprocess.run, [*runc, "delete", "--force", name], capture_output=True, check=False
        )


async def test_a_call_that_outlives_the_order_to_stop(
    built: tuple[Path, dict[str, Any]], own_folder: Path
) -> None:
    async with Emulator() as emulator:
        emulator.script = Script.model_validate(
            {"vad": "off", "answer": {"kind": "pattern", "seconds": 1}}
        )
        api = free_port("127.0.0.1")
        async with running(built, own_folder, emulator, api) as (gateway, inside):
            phone = Phone(gateway.sip)
            await phone.start()
            call = phone.call("100")
            call.invite()
            await call.answered()
            session = await emulator.wait_sessions(1, 10)
            await session.wait_until(lambda s: bool(s.sent("response.done")), within_s=30)
            (greeting,) = session.sent_items.values()
            await call.rtp.until(lambda: bytes(greeting) in call.rtp.heard)

            # As the engine asks: by the image's own health check, and its user.
            check = [word.replace("8080", str(api)) for word in built[1]["Healthcheck"]["Test"][1:]]
            await asyncio.to_thread(run, [*inside, *check])
            told = await asyncio.to_thread(
                run, [*inside, "python3", "-c", "print(open('/proc/1/status').read())"]
            )
            facts = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
            assert facts["Name"] == "tini"
            assert facts["Uid"].split() == ["10001"] * 4
            assert facts["NoNewPrivs"] == "1"
            assert int(facts["CapBnd"], 16) == 0

            gateway.signal(signal.SIGTERM)
            await gateway.wait("gateway.state", state="draining")
            refused = phone.call("100")
            refused.invite()
            assert (await refused.refused()).code == 503
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{api}", trust_env=False
            ) as http:
                ready = await http.get("/readyz")
                assert (ready.status_code, (await http.get("/healthz")).status_code) == (503, 200)
                assert "draining" in ready.text
            before = len(call.rtp.heard)
            await call.rtp.heard_bytes(before + 4000)
            await call.hang_up()
            status = await gateway.ended()
            await phone.stop()
        gateway.check(status)
        records = (own_folder / "state" / "records").glob("*[0-9a-f].json")
        whys = [json.loads(record.read_text())["ending"]["why"] for record in records]
        assert "remote_hangup" in whys
