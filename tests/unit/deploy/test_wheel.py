# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel that the pjsua2 build writes, and how it takes another's place in an environment."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "pjsua2"
sys.path.insert(0, str(DEPLOY))
wheel: Any = importlib.import_module("pjbuild.wheel")

ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
"""For an interpreter that is to see its own packages only."""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the build is for Linux")


def rows_of(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        record = next(name for name in archive.namelist() if name.endswith("/RECORD"))
        lines = archive.read(record).decode().splitlines()
    return {line.split(",")[0]: line.split(",")[1] for line in lines}


def a_wheel(folder: Path, version: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path: Path = folder / wheel.wheel_name(version)
    wheel.write_wheel(path, version, {"pjsua2/__init__.py": content, "pjsua2/_x.so": b"x"}, b"GPL")
    return path


def test_wheel_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    path = a_wheel(tmp_path, "2.17", b"X = 1\n")
    rows = rows_of(path)
    with zipfile.ZipFile(path) as archive:
        assert set(rows) == set(archive.namelist())
        for name in archive.namelist():
            digest = hashlib.sha256(archive.read(name)).digest()
            packed = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            assert rows[name] in (f"sha256={packed}", "" if name.endswith("RECORD") else None)


def test_same_content_gives_the_same_wheel(tmp_path: Path) -> None:
    one, two = (a_wheel(tmp_path / name, "2.17", b"X = 1\n") for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The interpreter of an empty virtual environment that can see a pip."""
    folder = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder],
        check=True,
        timeout=60,
    )
    python: Path = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    pip = importlib.util.find_spec("pip")
    if pip is None or not pip.submodule_search_locations:
        pytest.skip("needs pip")
    (site / "pip").symlink_to(pip.submodule_search_locations[0])
    return python


def install(python: Path, path: Path, log: Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from pjbuild import environment, errors, progress\n"
        "wheel = Path(sys.argv[2])\n"
        "try:\n"
        "    environment.install_wheel(wheel, progress.Progress(1, Path(sys.argv[3])))\n"
        "except errors.BuildError as error:\n"
        "    sys.exit(str(error))\n"
        "print(environment.has(wheel))\n"
    )
    return subprocess.run(
        [python, "-B", "-c", script, DEPLOY, path, log],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def imported(python: Path) -> str:
    done = subprocess.run(
        [python, "-B", "-c", "import pjsua2; print(pjsua2.X)"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


@linux_only
def test_install_replaces_another_pjsua2_and_a_failed_one_leaves_it(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(wheel, "DISTRIBUTION", "pjsua2-python")
        other = a_wheel(tmp_path / "other", "2.15.1", b"X = 'other'\n")
    log = tmp_path / "log"
    site = next(environment.parent.parent.glob("lib/python*/site-packages"))
    assert install(environment, other, log).returncode == 0

    broken = tmp_path / "broken" / wheel.wheel_name("2.17")
    broken.parent.mkdir()
    broken.write_bytes(b"PK, but no wheel")
    failed = install(environment, broken, log)
    assert failed.returncode == 1
    assert f"installing {broken.name} failed" in failed.stderr
    assert imported(environment) == "other"
    assert sorted(path.name for path in site.glob("pjsua2*")) == [
        "pjsua2",
        "pjsua2_python-2.15.1.dist-info",
    ]

    own = a_wheel(tmp_path / "own", "2.17", b"X = 'own'\n")
    done = install(environment, own, log)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"
    assert imported(environment) == "own"
    assert sorted(path.name for path in site.glob("pjsua2*")) == [
        "pjsua2",
        "pjsua2_gateway-2.17.dist-info",
    ]
