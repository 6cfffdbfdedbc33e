# SPDX-License-Identifier: GPL-2.0-or-later
"""What the build needs on the machine, looked for before anything is fetched or compiled.

Installed by apt-get where that may be done (root, or sudo without a password); otherwise the
error names exactly the packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .progress import Progress


@dataclass(frozen=True)
class Need:
    """One thing the build uses, and the Debian or Ubuntu package that has it."""

    package: str
    command: str = ""
    header: str = ""
    check: str = ""


NEEDS = (
    Need("gcc", command="gcc"),
    Need("g++", command="g++"),
    Need("make", command="make"),
    Need("swig", command="swig"),
    Need("patch", command="patch"),
    Need("xz-utils", command="xz"),
    Need("tar", command="tar"),
    Need("libc6-dev", header="stdio.h"),
    Need(
        "libssl-dev",
        header="openssl/ssl.h",
        check="#if OPENSSL_VERSION_NUMBER < 0x30000000L\n#error OpenSSL 3 is needed\n#endif",
    ),
    Need("libsrtp2-dev", header="srtp2/srtp.h"),
    Need("libopus-dev", header="opus/opus.h"),
    Need("libspeexdsp-dev", header="speex/speex_resampler.h"),
    Need("uuid-dev", header="uuid/uuid.h"),
)


def _header_found(need: Need) -> bool:
    source = f"#include <{need.header}>\n{need.check}\n"
    try:
        probe = subprocess.run(
            ["gcc", "-E", "-x", "c", "-", "-o", os.devnull],
            input=source,
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def _header_installed(need: Need) -> bool:
    """As near as one gets without a compiler to ask."""
    include = Path("/usr/include")
    return (include / need.header).exists() or any(include.glob(f"*-linux-*/{need.header}"))


def missing() -> list[Need]:
    """Everything of NEEDS, and the interpreter's headers, that is not here."""
    absent = [need for need in NEEDS if need.command and shutil.which(need.command) is None]
    if shutil.which("gcc"):
        absent += [need for need in NEEDS if need.header and not _header_found(need)]
    else:
        absent += [need for need in NEEDS if need.header and not _header_installed(need)]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        absent.append(_python_headers())
    return absent


def _python_headers() -> Need:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if Path(sys.base_prefix) != Path("/usr"):
        raise BuildError(
            f"{sys.executable} has no C headers ({sysconfig.get_path('include')}/Python.h): "
            f"install this Python {version} with its development files"
        )
    return Need(f"python{version}-dev", header="Python.h")


def _root_prefix() -> list[str] | None:
    """How to become root without asking anyone; None when that cannot be done."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        probe = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
        if probe.returncode == 0:
            return ["sudo", "-n"]
    return None


def _names(needs: Iterable[Need]) -> list[str]:
    return list(dict.fromkeys(need.package for need in needs))


def ensure(progress: Progress, *, may_install: bool) -> None:
    """Makes sure that everything is here, by apt-get if allowed and possible.

    Raises BuildError that names the missing packages when they cannot be installed, or are not
    to be found even after that.
    """
    absent = missing()
    if not absent:
        return
    names = _names(absent)
    listed = " ".join(names)
    by_hand = f"apt-get install --no-install-recommends {listed}"
    if shutil.which("apt-get") is None:
        raise BuildError(
            f"missing: {listed} (Debian's names). This machine has no apt-get: "
            "install their equivalents with its own package manager and run this again"
        )
    if not may_install:
        raise BuildError(f"missing packages: {listed}. Install them: {by_hand}")
    root = _root_prefix()
    if root is None:
        raise BuildError(
            f"missing packages: {listed}. Neither root nor sudo without a password here; "
            f"as root: {by_hand}"
        )
    progress.note(f"installing {listed}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    keep = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"] if root else []
    apt = [*root, *keep, "apt-get", "-o", "Acquire::Retries=2", "-o", "DPkg::Lock::Timeout=300"]
    what = f"installing {listed} (by hand: {by_hand})"
    install = [*apt, "-y", "--no-install-recommends", "install", *names]
    try:
        progress.run(install, what=what, env=env)
    except BuildError:
        # Lists that were never fetched, or are older than the mirror.
        progress.run([*apt, "update"], what=what, env=env)
        progress.run(install, what=what, env=env)
    still = missing()
    if still:
        raise BuildError(
            "still not found after installing: "
            + ", ".join(f"{need.command or need.header} (package {need.package})" for need in still)
            + f"; PATH is {os.environ.get('PATH', '')}"
        )
