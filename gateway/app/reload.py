# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads configuration, dialplans, prices and certificates anew while calls go on.

Everything is read and checked first; where something is wrong all of the old is kept. Calls keep
what they began with.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from gateway.config import Config, ConfigError
from gateway.dialplan import Dialplan
from gateway.log import redact_also, set_level
from gateway.planning.check import route_problems
from gateway.sip.agent import AgentError

APPLIED = ("realtime", "realtime_server", "limits")
"""Sections that hold for the next call; of ``cost``, prices and budgets do."""
_COST_FIXED = ("cost.state_file", "cost.timezone")

log = structlog.get_logger("gateway")

Read = Callable[[], tuple[Config, Dialplan]]
"""Reads the files; raises ConfigError."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Configuration and dialplan as read anew, and how they differ from those in effect."""

    config: Config
    """The one in effect, with the new values of settings that need no restart."""
    dialplan: Dialplan
    secrets: tuple[str, ...]
    level: str | None
    """New level of the log; None where the file's is unchanged: one set by the API stays."""
    changed: list[str]
    later: list[str]
    """Changed keys that need a restart."""


@dataclass(eq=False)
class Reloader:
    """Carries out one reload at a time. What takes long is done on a thread: calls go on.

    Args:
        read: called on a thread.
        current: returns configuration and dialplan that are in effect.
        use: puts new ones into effect for the next call, and calls its last argument when nothing
            else can fail; raises what that raises, OSError or ConfigError before anything changed.
        renew_certificates: returns the number of listeners; raises AgentError, then all are kept.
    """

    read: Read
    current: Callable[[], tuple[Config, Dialplan]]
    use: Callable[[Config, Dialplan, Callable[[], Awaitable[None]]], Awaitable[None]]
    renew_certificates: Callable[[], Awaitable[int]]

    def __post_init__(self) -> None:
        self._lock = asyncio.Lock()
        self.counts = {"applied": 0, "kept": 0}
        self.read_at = time.time()
        """When the files that hold now were read (Unix time)."""

    async def reload(self) -> Mapping[str, Any]:
        """Read all files, and apply them if none is wrong; one reload at a time.

        Returns ``applied``, ``changed`` and ``restart_required`` (keys with old and new value), or
        ``problems``, with all of the old kept.
        """
        async with self._lock:
            try:
                files = await asyncio.to_thread(self._compare)
                redact_also(files.secrets)
                await self.use(files.config, files.dialplan, self._reload_certificates)
            except ConfigError as error:
                return self._kept([str(one) for one in error.problems])
            except (AgentError, OSError, ValueError) as error:
                return self._kept([str(error)])
            if files.level is not None:
                set_level(files.level)
            self.counts["applied"] += 1
            self.read_at = time.time()
            changed, later = files.changed, files.later
            log.info("gateway.reloaded", changed=changed, restart_required=later)
            return {"applied": True, "changed": changed, "restart_required": later, "problems": []}

    def _compare(self) -> _Files:
        """Read the files and compare them with what holds. On a thread; raises OSError, ValueError,
        or ConfigError, also for routes that rely on what needs a restart."""
        # A full collection of what a large dialplan is made of would stop the calls' threads, too.
        gc.disable()
        try:
            config, dialplan = self.read()
            before, routes = self.current()
            secrets = (*config.secrets(), *dialplan.secrets())
            hidden = (*before.secrets(), *routes.secrets(), *secrets)
            keys = list(changed_keys(before, config))
            changed = [_told(*one, hidden) for one in keys if _is_applied(one[0])]
            later = [_told(*one, hidden) for one in keys if not _is_applied(one[0])]
            changed += changed_routes(routes, dialplan)
            update = {name: getattr(config, name) for name in (*APPLIED, "cost")}
            update["log"] = before.log.model_copy(update={"level": config.log.level})
            new = before.model_copy(update=update)
            new.as_read_with(config)
            if misfits := list(route_problems(new, dialplan)) if later else []:
                # They fit the files as a whole: what they lack comes with a restart.
                why = "needs a restart for " + ", ".join(one.partition(":")[0] for one in later)
                raise ConfigError(replace(one, message=f"{one.message}; {why}") for one in misfits)
            level = None if config.log.level == before.log.level else config.log.level
            return _Files(new, dialplan, secrets, level, changed, later)
        finally:
            gc.enable()

    def _kept(self, problems: list[str]) -> Mapping[str, Any]:
        """Log why nothing was applied, and return the answer of :meth:`reload`."""
        self.counts["kept"] += 1
        log.error("gateway.reload_failed", problems=problems)
        return {"applied": False, "changed": [], "restart_required": [], "problems": problems}

    async def _reload_certificates(self) -> None:
        """Have the listeners take their certificates anew, and log it. Raises AgentError; then they
        keep the old ones."""
        try:
            count = await self.renew_certificates()
        except (AgentError, TimeoutError) as error:
            text = str(error) or "the SIP thread does not answer"
            log.error("sip.certificate_reload_failed", error=text)
            raise AgentError(text) from None
        log.info("sip.certificates_reloaded", listeners=count)


def changed_keys(
    before: BaseModel, after: BaseModel, prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key whose value differs, dotted, with the old and the new value.

    Lists and tables of free keys are compared as a whole.
    """
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        key = f"{prefix}{name}"
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            yield from changed_keys(old, new, f"{key}.")
        elif old != new:
            yield key, old, new


MAX_VALUE = 80
"""Characters of a value that the log has."""


def _told(key: str, old: Any, new: Any, hidden: Sequence[str]) -> str:
    """Return a key with its old and new value; of a secret, or what has one in it, the key."""
    if type(old) is not type(new) and None not in (old, new):
        return key
    texts = [_shown(one) for one in (old, new)]
    if any(text is None or any(one in text for one in hidden if one) for text in texts):
        return key
    return f"{key}: {texts[0]} -> {texts[1]}"


def _shown(value: Any) -> str | None:
    """Return a value as TOML would have it; None for what must not be shown."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        text = json.dumps(str(value), ensure_ascii=False)
    elif isinstance(value, int | float | Decimal):
        text = str(value)
    elif isinstance(value, tuple) and all(isinstance(one, str | int | float) for one in value):
        text = json.dumps(value, ensure_ascii=False)
    else:
        return None  # tables, and secrets
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def changed_routes(before: Dialplan, after: Dialplan) -> list[str]:
    """Name routes that are new, gone or different, or in another order."""
    old = {route.name: route for route in before.routes}
    new = {route.name: route for route in after.routes}
    found = [f"route {name}: new" for name in new if name not in old]
    found += [f"route {name}: removed" for name in old if name not in new]
    found += [f"route {name}: changed" for name in new if name in old and old[name] != new[name]]
    if not found and list(old) != list(new):
        found.append("order of routes")
    if before.tools != after.tools:
        found.append("tools of the dialplans")
    return found


def _is_applied(key: str) -> bool:
    """Return whether a changed key takes effect without a restart."""
    section = key.partition(".")[0]
    return (
        section in APPLIED
        or key == "log.level"
        or (section == "cost" and not key.startswith(_COST_FIXED))
    )
