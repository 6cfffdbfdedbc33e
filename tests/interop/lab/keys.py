# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates for TLS on loopback, made by the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Keys:
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


def self_signed(folder: Path, name: str) -> Keys:
    """A certificate for all the lab's addresses, valid for a few days, that is its own CA."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = Keys(folder / f"{name}.crt", folder / f"{name}.key")
    names = ",".join(["DNS:localhost", *(f"IP:127.0.0.{number}" for number in range(1, 10))])
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3"),
            *("-keyout", str(keys.key), "-out", str(keys.certificate)),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return keys
