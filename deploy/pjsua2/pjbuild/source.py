# SPDX-License-Identifier: GPL-2.0-or-later
"""Where pjproject's source comes from: upstream's archive, or Debian's source package by apt.

Either way it is checked: the archive against a pinned SHA-256, the package by apt (signed index,
SHA-256 of the file) and against the hash that was seen when this was written.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .debian import fetch_debian
from .errors import BuildError
from .progress import Progress

OLDEST = (2, 17)

ARCHIVE_VERSION = "2.17"
ARCHIVE_URL = f"https://github.com/pjsip/pjproject/archive/refs/tags/{ARCHIVE_VERSION}.tar.gz"
# As recorded by Homebrew's formula and by several projects from downloads of their own; see
# README.md, "The source".
ARCHIVE_SHA256 = "065fe06c06788d97c35f563796d59f00ce52fe9558a52d7b490a042a966facce"
_CONNECT_SECONDS = 10
_ARCHIVE_LIMIT = 100 * 1024 * 1024


@dataclass(frozen=True)
class Source:
    """A source archive in the cache, checked."""

    path: Path
    sha256: str
    origin: str


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_archive(cache: Path, progress: Progress) -> Source:
    """Upstream's release archive, or what PJSUA2_ARCHIVE names (URL or path) instead of it.

    Raises BuildError when it cannot be reached or is not what the pin says. Another archive needs
    its own PJSUA2_ARCHIVE_SHA256.
    """
    where = os.environ.get("PJSUA2_ARCHIVE", "")
    pin = os.environ.get("PJSUA2_ARCHIVE_SHA256", "").lower()
    if where and not pin:
        raise BuildError("PJSUA2_ARCHIVE needs PJSUA2_ARCHIVE_SHA256, the hash to check it by")
    where, pin = where or ARCHIVE_URL, pin or ARCHIVE_SHA256
    if not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise BuildError(f"PJSUA2_ARCHIVE_SHA256 is not a SHA-256 in hex: {pin!r}")
    local = Path(where)
    if "://" not in where:
        if not local.is_file():
            raise BuildError(f"PJSUA2_ARCHIVE: no such file: {where}")
        return _checked(local, pin, where)
    kept = cache / f"pjproject-{pin[:16]}.tar.gz"
    if not kept.is_file():
        progress.note(f"fetching {where}")
        part = kept.with_suffix(f".{os.getpid()}.part")
        try:
            with urllib.request.urlopen(where, timeout=_CONNECT_SECONDS) as answer:
                data = answer.read(_ARCHIVE_LIMIT)
            part.write_bytes(data)
            _checked(part, pin, where)
            part.rename(kept)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise BuildError(f"cannot reach {where}: {reason}") from error
        finally:
            part.unlink(missing_ok=True)
    return _checked(kept, pin, where)


def _checked(path: Path, pin: str, where: str) -> Source:
    found = sha256_of(path)
    if found != pin:
        raise BuildError(f"{where}: SHA-256 is {found}, pinned is {pin}; not used")
    return Source(path, found, where)


def _debian(cache: Path, progress: Progress) -> Source:
    path, origin = fetch_debian(cache, progress)
    return Source(path, sha256_of(path), origin)


_WAYS: dict[str, Callable[[Path, Progress], Source]] = {
    "archive": fetch_archive,
    "debian": _debian,
}


def fetch(cache: Path, progress: Progress) -> Source:
    """The source, from the first place that has it; PJSUA2_SOURCE=archive or debian picks one.

    Raises BuildError that says of each place why it was not to be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    chosen = os.environ.get("PJSUA2_SOURCE", "") or "auto"
    if chosen != "auto" and chosen not in _WAYS:
        raise BuildError(f"PJSUA2_SOURCE is {chosen!r}; it can be auto, archive or debian")
    problems: list[str] = []
    for name, way in _WAYS.items():
        if chosen not in ("auto", name):
            continue
        try:
            return way(cache, progress)
        except BuildError as error:
            problems.append(f"{name}: {error}")
            progress.note(problems[-1].splitlines()[0])
    raise BuildError("no source of pjproject could be had:\n  " + "\n  ".join(problems))


def unpack(source: Source, into: Path, progress: Progress) -> str:
    """Unpacks a source into a new folder and returns its version, as ``2.17``.

    Raises BuildError when it is older than OLDEST or no pjproject.
    """
    into.mkdir(parents=True)
    progress.run(
        ["tar", "-xf", source.path, "-C", into, "--strip-components=1"], what="unpacking the source"
    )
    version = version_of(into)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise BuildError(f"{source.origin} is pjproject {version}; {wanted} or later is needed")
    return version


def version_of(tree: Path) -> str:
    """pjproject's version, out of its ``version.mak``. Raises BuildError when there is none."""
    try:
        text = (tree / "version.mak").read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(f"not pjproject's source: {tree} has no version.mak") from error
    parts = dict(re.findall(r"^export PJ_VERSION_(\w+)\s*:?=[ \t]*(\S*)", text, re.MULTILINE))
    version = f"{parts.get('MAJOR', '')}.{parts.get('MINOR', '')}"
    if not re.fullmatch(r"\d+\.\d+", version):
        raise BuildError(f"cannot tell pjproject's version from {tree}/version.mak")
    return f"{version}.{parts['REV']}" if parts.get("REV") else version
