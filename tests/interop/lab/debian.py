# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of the lab out of Debian's rolling suite, unpacked into a folder of the cache.

Debian's stable releases carry no Asterisk, and another version of baresip each. apt fetches and
checks the packages with the machine's own mirror, proxy and keyrings; lists, status and archives
are the lab's own. Nothing is installed on the machine, and no root is needed. The programs run with
the loader and the libraries of that folder, so they fit any machine of the same architecture.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.interop.lab.mirror import Origin, origin

PACKAGES = (
    "asterisk",
    "asterisk-core-sounds-en-wav",
    "baresip-core",
    "docker-compose",
    "kamailio",
    "kamailio-tls-modules",
    "kubectl",
    "prometheus",
    "sip-tester",
)

_RECIPE = "1"
"""Raised when this file unpacks differently: older folders of the cache are not used then."""

_UNUSED = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/perl"),
    *("usr/share/lintian", "usr/share/zoneinfo", "usr/lib/systemd"),
    *("usr/lib/*/perl", "usr/lib/*/perl-base", "usr/lib/*/gconv", "usr/lib/python3*"),
)

_APT = """\
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "{sandbox}";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Acquire::Check-Valid-Until "false";
"""
"""A mirror that is a snapshot serves indices past their date. The hooks of the machine's apt
would clean up the machine's cache."""


class Root:
    """The folder with the programs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        libc = next(path.glob("usr/lib/*/libc.so.6"))
        self.libraries = libc.parent
        """Debian's multiarch folder."""
        self._loader = next(self.libraries.glob("ld-linux*.so.*"))

    def command(self, program: str) -> list[str]:
        """How to run a program, ``usr/sbin/asterisk`` for example."""
        search = f"{self.libraries}:{self.path / 'usr/lib'}"
        return [str(self._loader), "--library-path", search, str(self.path / program)]


def installed() -> Root:
    """The programs, fetched when they are not there yet (half a minute, 260 MB).

    Raises ``RuntimeError`` that says what could not be had.
    """
    source = origin()
    text = "\0".join([_RECIPE, source.suite, *PACKAGES])
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    store = cache()
    root = store / f"{source.suite}-{key}"
    with locked(store):
        if not root.is_dir():
            _fetch(root, source)
    return Root(root)


def cache() -> Path:
    """Where the programs are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # empty or relative counts as unset (XDG base directories)
        base = Path.home() / ".cache"
    store = base / "sip-realtime-gateway" / "asterisk"
    store.mkdir(parents=True, exist_ok=True)
    return store


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Let one run at a time fetch what a folder of the cache keeps; another waits for it."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(root: Path, source: Origin) -> None:
    work = root.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    tree, apt = work / "root", work / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    tree.mkdir()
    (apt / "state" / "status").touch()
    (apt / "sources.list").write_text(source.line + "\n")
    sandbox = "root" if os.geteuid() == 0 else ""
    (apt / "apt.conf").write_text(_APT.format(folder=apt, sandbox=sandbox))
    print(f"fetching {', '.join(PACKAGES)} ({source.suite}) into {root}", flush=True)
    options = ("-c", str(apt / "apt.conf"))
    _run(["apt-get", "-q", *options, "update"])
    _run(["apt-get", "-q", "-y", *options, "--download-only", "install", *PACKAGES])
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(tree)])
    for pattern in _UNUSED:
        for unused in tree.glob(pattern):
            shutil.rmtree(unused)
    # The alternative that the sounds' postinst makes, which is not run here.
    sounds = tree / "usr/share/asterisk/sounds"
    if not (sounds / "en").exists():
        (sounds / "en").symlink_to("en_US_f_Allison")
    tree.rename(root)
    shutil.rmtree(work)


def _run(command: Sequence[str]) -> None:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["nice", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")


if __name__ == "__main__":
    print(installed().path)
