# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a pjsua2 into the interpreter's environment in place of another, or leaves it as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from .errors import BuildError
from .progress import Progress
from .wheel import DISTRIBUTION

# Others on PyPI put a package pjsua2 into site-packages too; only one can be installed.
_RIVALS = (DISTRIBUTION, "pjsua2-python", "pjsua2")


def _installed() -> list[str]:
    """Distributions in this interpreter's site-packages that own the package pjsua2."""
    importable = []
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for found in metadata.distributions(path=list(dict.fromkeys(places))):
        name = (found.metadata["Name"] or "").lower().replace("_", "-")
        if name in _RIVALS:
            importable.append(name)
    return importable


def require_pip() -> None:
    """Raises BuildError when the interpreter cannot install: found before the long work."""
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True)
    if probe.returncode:
        raise BuildError(
            f"{sys.executable} has no pip: install it into the environment "
            f"({sys.executable} -m ensurepip), or use --no-install and install the wheel yourself"
        )
    if (
        sys.prefix == sys.base_prefix
        and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    ):
        raise BuildError(
            f"{sys.executable} is the system's Python, which its package manager owns: "
            "name the interpreter of a virtual environment"
        )


def _pip(progress: Progress, what: str, *words: str | Path) -> None:
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    progress.run([sys.executable, "-m", "pip", *words], what=what, env=env)


def replace(progress: Progress, *words: str | Path, what: str) -> None:
    """Removes whatever pjsua2 is installed and installs another: ``words`` are pip install's.

    Should the second fail, the first is put back. Raises BuildError then.
    """
    site = Path(sysconfig.get_path("platlib"))
    with tempfile.TemporaryDirectory(prefix="pjsua2-", dir=site) as kept:
        before = [path for path in site.iterdir() if path.name.startswith(("pjsua2", "_pjsua2"))]
        before = [path for path in before if path != Path(kept)]
        for path in before:
            copy = Path(kept, path.name)
            if path.is_dir():
                shutil.copytree(path, copy, symlinks=True)
            else:
                shutil.copy2(path, copy)
        try:
            present = _installed()
            if present:
                _pip(progress, f"removing {' '.join(present)}", "uninstall", "-y", *present)
            _pip(progress, what, "install", "--no-deps", "--no-index", *words)
        except BaseException:
            for path in site.iterdir():
                if path.name.startswith(("pjsua2", "_pjsua2")) and path != Path(kept):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in Path(kept).iterdir():
                path.rename(site / path.name)
            raise


def has(wheel: Path) -> bool:
    """Whether exactly this wheel's extension module is what the environment has."""
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith("/RECORD"))
        wanted = {row for row in archive.read(record).decode().splitlines() if ".so," in row}
    site = Path(sysconfig.get_path("platlib"))
    try:
        rows = set((site / record).read_text(encoding="utf-8").splitlines())
    except OSError:
        return False
    present = all((site / row.split(",")[0]).is_file() for row in wanted)
    return wanted <= rows and present and _installed() == [DISTRIBUTION]


def install_wheel(wheel: Path, progress: Progress) -> None:
    """Makes the built wheel the environment's pjsua2."""
    replace(progress, wheel, what=f"installing {wheel.name}")
