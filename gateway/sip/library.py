# SPDX-License-Identifier: GPL-2.0-or-later
"""The pjsua2 of ``deploy/pjsua2`` that this process runs on, and what it was built for."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import pjsua2 as pj

_NEEDED = ("BUILD", "NativeCallAudio", "NativeSignalling")
_lacking = [name for name in _NEEDED if not hasattr(pj, name)]
if _lacking:
    raise ImportError(
        f"{pj.__file__} is not the gateway's own build of this version (no {_lacking[0]}): "
        "`make` installs it"
    )


def quieten() -> None:
    """Let pjlib log nothing until ``libInit`` says where to: it would write to stdout."""
    pj.nativeLogLevel(0)


def calls() -> int:
    """Calls of the library now, those that are ending included."""
    return int(pj.nativeCallCount())


def capacity() -> int:
    """Calls that the library can have at the same time (``PJSUA_MAX_CALLS``)."""
    return int(pj.BUILD["max_calls"])


def account_capacity() -> int:
    """Accounts that the library has a place for (``PJSUA_MAX_ACC``)."""
    return int(pj.BUILD["max_accounts"])


def media_handles() -> int:
    """Sockets that a queue of the library holds (``PJ_IOQUEUE_MAX_HANDLES``)."""
    return int(pj.BUILD["max_sockets"])


@dataclass(frozen=True, slots=True)
class Build:
    """What is known of the pjsua2 in use."""

    distribution: str
    """Name and version of the installed package, or "unknown"."""
    version: str
    """pjproject's own version."""
    path: str
    """Where the extension module was loaded from."""
    tls: str
    """The TLS library that is loaded."""


def build() -> Build:
    """Describe the pjsua2 in use; needs no started endpoint."""
    try:
        found = f"pjsua2-gateway {importlib.metadata.version('pjsua2-gateway')}"
    except importlib.metadata.PackageNotFoundError:
        found = "unknown"
    return Build(
        distribution=found,
        version=str(pj.BUILD["version"]),
        path=str(pj._pjsua2.__file__),
        tls=str(pj.nativeTlsLibrary()),
    )
