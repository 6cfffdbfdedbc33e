# SPDX-License-Identifier: GPL-2.0-or-later
"""A PostgreSQL server of a test's own: Debian's, in a folder and on a port of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.harness import closed_port

PASSWORD = "pg-secret-8d3c1f"
"""Of the user ``gateway``; must show up nowhere."""
START_S = 60.0


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Postgres:
    """Owns the server. Where we are root it runs as the user ``postgres``: it refuses root."""

    def __init__(self) -> None:
        programs = _programs()
        if programs is None:
            pytest.skip("without PostgreSQL: apt-get install postgresql")
        self._bin = programs
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._port = closed_port()
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        (self._folder / "pw").write_text(PASSWORD)
        (self._folder / "pw").chmod(0o644)
        self._run(
            *("initdb", "-D", str(self._folder / "data"), "-U", "gateway", "-E", "UTF8"),
            *("--pwfile", str(self._folder / "pw"), "-A", "scram-sha-256", "--no-sync"),
            "--locale=C.UTF-8",
        )
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the database ``postgres``, with the password."""
        return f"postgresql://gateway:{PASSWORD}@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = "-c fsync=off -c shared_buffers=16MB -c max_connections=30 "
        options += f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._run(
            *("pg_ctl", "-D", str(self._folder / "data"), "-w", "-t", str(int(START_S))),
            *("-l", str(self._folder / "log"), "-o", f"-p {self._port} {options}", "start"),
        )

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")

    def pause(self, paused: bool) -> None:
        """Let it hang, without closing anything; or go on."""
        number = signal.SIGSTOP if paused else signal.SIGCONT
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split("\n")[0])
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False)
        for one in (pid, *map(int, children.stdout.split())):
            os.kill(one, number)

    def remove(self) -> None:
        """Stop it, if it runs, and delete its folder."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if self._user is not None:
            command = [
                "setpriv",
                f"--reuid={self._user}",
                f"--regid={self._user}",
                "--clear-groups",
                *command,
            ]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            timeout=2 * START_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()
