# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reload applies, and what it refuses with all of the old kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.app.reload import Reloader
from gateway.config import Config
from gateway.dialplan import Dialplan
from gateway.planning.check import load_all

BASE = """
[realtime]
url = "ws://127.0.0.1:1/v1/realtime"
[records]
folder = "records"
"""
WEBHOOK = """
[[webhook]]
name = "app"
url = "https://example.org/hook"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
events = []
"""
API = f"""
[api]
listen = "127.0.0.1:0"
[[api.token]]
name = "t"
role = "application"
hash = "sha256:{"a" * 64}"
"""
TRUNK = """
[[trunk]]
name = "new"
peers = ["192.0.2.1"]
"""


class Files:
    """A configuration and its dialplan as files, and what is in effect of them."""

    def __init__(self, folder: Path) -> None:
        self._config, self._routes = folder / "gateway.toml", folder / "dialplans" / "a.toml"
        self._routes.parent.mkdir()
        self.write("", "")
        self.current = self._read()
        self.reloader = Reloader(self._read, lambda: self.current, self._use, self._renew)

    def write(self, more: str, route: str) -> None:
        """Write them: the configuration with ``more``, and a route with ``route``."""
        self._config.write_text(BASE + more)
        self._routes.write_text(f"[[route]]\nname = 'r'\n{route}")

    def _read(self) -> tuple[Config, Dialplan]:
        return load_all(self._config)

    async def _use(
        self, config: Config, dialplan: Dialplan, _last: Callable[[], Awaitable[None]]
    ) -> None:
        self.current = config, dialplan

    async def _renew(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("more", "route", "why"),
    [
        (
            WEBHOOK + API,
            "[route.application]\nwebhook = 'app'\n",
            'application.webhook: there is no [[webhook]] "app"; needs a restart for '
            "api.listen, api.token, webhook",
        ),
        (
            TRUNK,
            "trunk = 'new'\n",
            'trunk: there is no trunk "new"; needs a restart for trunk',
        ),
        (
            "[recording]\nfolder = 'recordings'\n",
            "[route.recording]\nmode = 'always'\n",
            "recording.mode: needs recording.folder: recordings go there; needs a restart for "
            "recording.folder",
        ),
    ],
)
async def test_routes_that_rely_on_what_needs_a_restart_are_not_applied(
    tmp_path: Path, more: str, route: str, why: str
) -> None:
    files = Files(tmp_path)
    before = files.current
    files.write(more, route)
    told = await files.reloader.reload()
    assert not told["applied"]
    place = f"{tmp_path}/dialplans/a.toml:"
    assert any(one.startswith(place) and one.endswith(why) for one in told["problems"]), told
    assert files.current is before
    # The same settings without the route only wait for the restart.
    files.write(more, "to = '1'\n")
    told = await files.reloader.reload()
    assert told["applied"]
    assert told["changed"] == ["route r: changed"]
    assert [one.to for one in files.current[1].routes] != [one.to for one in before[1].routes]
