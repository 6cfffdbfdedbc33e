# SPDX-License-Identifier: GPL-2.0-or-later
"""Where this machine's apt would find the distribution's rolling suite: its own mirror."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BUILD = Path(__file__).parents[3] / "deploy" / "pjsua2"


@dataclass(frozen=True, slots=True)
class Origin:
    """A suite and its line for ``sources.list``."""

    suite: str
    line: str


def origin() -> Origin:
    """The rolling suite on the machine's mirror. Raises ``RuntimeError`` when there is none."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not here: the lab's programs are Debian packages")
    # The build of pjsua2 asks the same question of apt, for a source package.
    if str(_BUILD) not in sys.path:
        sys.path.append(str(_BUILD))
    debian: Any = importlib.import_module("pjbuild.debian")
    release = debian.distribution()
    fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    try:
        suite = debian.suite_for(release)
        base = debian.mirror(listed.stdout.splitlines(), release.get("VERSION_CODENAME", ""))
    except Exception as error:
        raise RuntimeError(str(error)) from None
    components = suite.component if suite.component == "main" else f"main {suite.component}"
    return Origin(suite.name, f"deb [signed-by={suite.keyring}] {base} {suite.name} {components}")
