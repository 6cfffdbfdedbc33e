# SPDX-License-Identifier: GPL-2.0-or-later
"""Where finished work is kept, and the keys that say when it may be used again.

Three stores under one folder: ``sources`` (checked archives), ``lib`` (compiled C libraries, for
all interpreters) and ``wheels`` (one folder a version, recipe, interpreter and platform).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from .debian import distribution
from .errors import BuildError
from .library import extra_cflags
from .wheel import platform_tag, python_tag

# What changes the libraries; what changes the wheel besides.
_LIBRARY_FILES = ("config_site.h", "patches/*.patch", "pjbuild/library.py")
_WHEEL_FILES = ("package/*.py", "native/*", "pjbuild/wrapper.py", "pjbuild/wheel.py")


def cache_root(env: Mapping[str, str], project: Path) -> Path:
    """PJSUA2_CACHE, or a folder in the user's cache, or (no home) in the project."""
    if env.get("PJSUA2_CACHE"):
        return Path(env["PJSUA2_CACHE"]).absolute()
    base = env.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # empty or relative counts as unset (XDG base directories)
        home = env.get("HOME", "")
        base = f"{home}/.cache" if Path(home).is_absolute() else ""
    if base and _writable(Path(base)):
        return Path(base) / "sip-realtime-gateway" / "pjsua2"
    return project / ".cache" / "pjsua2"


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def platform_key() -> str:
    """Machine and distribution release: the libraries of another one may not fit."""
    release = distribution()
    system = f"{release.get('ID', 'linux')}{release.get('VERSION_ID', '')}"
    codename = "" if release.get("VERSION_ID") else release.get("VERSION_CODENAME", "")
    return re.sub(r"[^\w.]", "", f"{platform_tag()}.{system}{codename}")


def _digest(here: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256(extra_cflags().encode())
    for pattern in patterns:
        for file in sorted(path for path in here.glob(pattern) if path.is_file()):
            digest.update(f"\0{file.relative_to(here)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def library_key(here: Path, version: str, source_sha256: str) -> str:
    """Names a compiled library: version, source, configuration, platform."""
    return f"{version}-{source_sha256[:12]}-{_digest(here, _LIBRARY_FILES)}-{platform_key()}"


def wheel_key(here: Path, version: str) -> str:
    """Names a finished wheel: version, configuration and scripts, interpreter, platform.

    With ``*`` as version it is a pattern that finds any.
    """
    recipe = _digest(here, _LIBRARY_FILES + _WHEEL_FILES)
    return f"{version}-{recipe}-{python_tag()}-{platform_key()}"


def finished_wheel(root: Path, here: Path) -> Path | None:
    """The newest wheel in the cache that this recipe made for this interpreter."""
    found = (root / "wheels").glob(f"{wheel_key(here, '*')}/*.whl")
    return max(found, key=lambda path: _numbers(path.parent.name), default=None)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.partition("-")[0].split("."))


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One build at a time in a cache; another waits. Raises BuildError if it cannot be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / "lock").open("w")
    except OSError as error:
        raise BuildError(
            f"cannot write the cache {root}: {error.strerror}; PJSUA2_CACHE can name another"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another build uses {root}: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


_KEPT = {"wheels": 12, "objects": 8, "lib": 3, "logs": 20}


def prune(root: Path) -> None:
    """Removes the oldest of each store beyond what several interpreters and branches need."""
    for store, count in _KEPT.items():
        entries = sorted((root / store).glob("*"), key=lambda path: path.stat().st_mtime)
        for old in entries[:-count]:
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
