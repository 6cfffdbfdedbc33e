# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the wheel: a zip with the package and its metadata (PyPA binary distribution format)."""

from __future__ import annotations

import base64
import hashlib
import sys
import sysconfig
import zipfile
from pathlib import Path

DISTRIBUTION = "pjsua2-gateway"
_EPOCH = (2020, 1, 1, 0, 0, 0)  # the same content gives the same file


def python_tag() -> str:
    """As ``cp311``; a free-threaded interpreter has its own (``cp313t``)."""
    threaded = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"cp{sys.version_info.major}{sys.version_info.minor}{threaded}"


def platform_tag() -> str:
    """As ``linux_x86_64``: for this machine, not for another distribution."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def wheel_name(version: str) -> str:
    """The file's name, PEP 427."""
    abi = python_tag()
    tag = f"{abi.removesuffix('t')}-{abi}-{platform_tag()}"
    return f"{DISTRIBUTION.replace('-', '_')}-{version}-{tag}.whl"


def write_wheel(target: Path, version: str, files: dict[str, bytes], licence: bytes) -> None:
    """Writes ``files`` (path in site-packages → content) as a wheel to ``target``."""
    info = f"{DISTRIBUTION.replace('-', '_')}-{version}.dist-info"
    tag = "-".join(target.stem.split("-")[-3:])
    metadata = (
        "Metadata-Version: 2.1\n"
        f"Name: {DISTRIBUTION}\n"
        f"Version: {version}\n"
        "Summary: pjproject's pjsua2, built from source for many calls on this machine\n"
        "License: GPL-2.0-or-later\n"
        f"Requires-Python: =={sys.version_info.major}.{sys.version_info.minor}.*\n"
    )
    wheel = f"Wheel-Version: 1.0\nGenerator: pjbuild\nRoot-Is-Purelib: false\nTag: {tag}\n"
    everything = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": wheel.encode(),
        f"{info}/top_level.txt": b"pjsua2\n",
        f"{info}/licenses/COPYING": licence,
    }
    record = f"{info}/RECORD"
    rows = [f"{name},{_digest(data)},{len(data)}" for name, data in everything.items()]
    everything[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in everything.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            archive.writestr(entry, data)
    part.rename(target)


def _digest(data: bytes) -> str:
    packed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={packed.decode()}"
