# SPDX-License-Identifier: GPL-2.0-or-later
"""pjproject out of Debian's source package of Asterisk, which carries it as a component.

apt does the fetching and checking, with the machine's own mirror, proxy and keyrings, but with
package lists and a source list of its own: the machine's apt is not changed, and no root is needed.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .progress import Progress

PACKAGE = "asterisk"
COMPONENT = "Xpjproject"
# What Debian sid had when this was written; a later one is taken, and said.
SEEN_FILE = "asterisk_22.10.1+dfsg+~cs6.17.60671434.orig-Xpjproject.tar.xz"
SEEN_SHA256 = "6860c2f7604b4eee75f38151a9ef69774eb3f0c5286fc1d14bc1db2dc5a9e8aa"

_APT_HELPER = Path("/usr/lib/apt/apt-helper")


@dataclass(frozen=True)
class Suite:
    """The rolling suite of a distribution, whose Asterisk is recent enough."""

    name: str
    component: str
    keyring: str


_ROLLING = ("stable", "testing", "unstable", "sid", "devel")
_SUITES = {
    "debian": Suite("sid", "main", "/usr/share/keyrings/debian-archive-keyring.gpg"),
    "ubuntu": Suite("devel", "universe", "/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}


def distribution(os_release: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The fields of os-release (ID, VERSION_CODENAME, …); empty when there is none."""
    try:
        text = os_release.read_text(encoding="utf-8")
    except OSError:
        return {}
    return {key: value.strip("\"'") for key, value in re.findall(r"(?m)^(\w+)=(.*)$", text)}


def suite_for(release: dict[str, str]) -> Suite:
    """The suite to look in. Raises BuildError on anything but Debian and Ubuntu."""
    # A derivative has mirrors of its own, which do not carry its parent's suite.
    if release.get("ID") in _SUITES:
        return _SUITES[release["ID"]]
    called = release.get("PRETTY_NAME") or release.get("ID") or "unknown"
    raise BuildError(
        f"this system is {called}: Debian's source package is fetched on Debian and Ubuntu only. "
        "Name an archive of pjproject with PJSUA2_ARCHIVE and PJSUA2_ARCHIVE_SHA256"
    )


def mirror(lines: list[str], codename: str) -> str:
    """The machine's mirror: the first repository of ``URI|suite|component`` lines that serves
    this release's own suite (not its security updates, nor another vendor's).

    Raises BuildError when there is none.
    """
    rows = [line.split("|") for line in lines if line.count("|") == 2]
    for suites in ((codename, f"{codename}-updates"), _ROLLING):
        for uri, suite, component in rows:
            if component == "main" and suite in suites and uri:
                return uri.rstrip("/")
    raise BuildError(
        "no mirror of this distribution in apt's configuration (/etc/apt/sources.list, "
        "/etc/apt/sources.list.d); PJSUA2_APT_MIRROR can name one"
    )


def newest(uris: list[str]) -> tuple[str, str, str]:
    """(URL, file name, SHA-256) of the component in apt's ``--print-uris``.

    Raises BuildError when the source package has no such component.
    """
    for line in uris:
        match = re.match(rf"'([^']+)' (\S+\.orig-{COMPONENT}\.tar\.\w+) \d+ SHA256:(\w+)", line)
        if match:
            return match[1], match[2], match[3]
    raise BuildError(f"the source package {PACKAGE} there has no component {COMPONENT}")


def fetch_debian(cache: Path, progress: Progress) -> tuple[Path, str]:
    """Fetches the component into the cache and returns its path and a name for its origin.

    Raises BuildError that says what could not be reached.
    """
    kept = cache / SEEN_FILE
    if kept.is_file():
        return kept, f"{SEEN_FILE} (Debian, kept)"
    for tool in ("apt-get", str(_APT_HELPER)):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not here: Debian's source package is fetched with apt")
    release = distribution()
    suite = suite_for(release)
    base = os.environ.get("PJSUA2_APT_MIRROR", "").rstrip("/")
    if not base:
        targets = progress.run(
            [
                *("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"),
                "Created-By: Packages",
            ],
            what="reading apt's configuration",
        )
        base = mirror(targets, release.get("VERSION_CODENAME", ""))
    if not Path(suite.keyring).is_file():
        raise BuildError(f"missing package: {Path(suite.keyring).stem} ({suite.keyring})")

    root = cache / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    sources = root / "sources.list"
    sources.write_text(
        f"deb-src [signed-by={suite.keyring}] {base} {suite.name} {suite.component}\n"
    )
    options = [
        f"Dir::Etc::sourcelist={sources}",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={root}/lists",
        f"Dir::Cache={root}/cache",
        "Acquire::Languages=none",
        "Acquire::Retries=2",
        "Acquire::http::Timeout=20",
        "Acquire::https::Timeout=20",
        # A mirror that is a snapshot serves indices past their date; the file itself is pinned.
        "Acquire::Check-Valid-Until=false",
        # The folders are this user's, maybe out of the reach of apt's own.
        f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}",
        "APT::Update::Error-Mode=any",
    ]
    flags = [word for option in options for word in ("-o", option)]
    env = {**os.environ, "LC_ALL": "C"}
    progress.note(f"asking {base} ({suite.name}) for the source package {PACKAGE}")
    progress.run(["apt-get", "-q", *flags, "update"], what=f"reaching the mirror {base}", env=env)
    uris = progress.run(
        ["apt-get", "-qq", *flags, "source", "--print-uris", "--download-only", PACKAGE],
        what=f"looking up the source package {PACKAGE} in {suite.name}",
        env=env,
    )
    url, name, sha256 = newest(uris)
    if name != SEEN_FILE:
        progress.note(
            f"warning: {suite.name} has moved on to {name} (seen before: {SEEN_FILE}); "
            "taken as it is, by apt's signature"
        )
    elif sha256 != SEEN_SHA256:
        raise BuildError(f"{name} has SHA-256 {sha256}, pinned is {SEEN_SHA256}; not used")
    path = cache / name
    if not path.is_file():
        part = cache / f"{name}.{os.getpid()}.part"
        try:
            progress.run(
                [_APT_HELPER, *flags, "download-file", url, part, f"SHA256:{sha256}"],
                what=f"fetching {url}",
                env=env,
            )
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
    return path, f"{name} ({release.get('ID', '')} {suite.name})"
