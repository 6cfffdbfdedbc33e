# SPDX-License-Identifier: GPL-2.0-or-later
"""``[route.session]``: the GA session object, checked before the first call.

What is known of the object is checked: names, types, ranges, and what may stand beside what. Models
and servers get new settings faster than gateways do, so a name or a choice that is not known here
(a voice of tomorrow) is told apart from a value that cannot be right: :attr:`Finding.unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from gateway.config.problems import KeyPath, MisplacedError
from gateway.config.validate import suggestion
from gateway.dialplan.session_models import TABLES, UNKNOWN, SessionModel
from gateway.dialplan.variables import names_in

OFF: tuple[KeyPath, ...] = (
    ("audio", "input", "turn_detection"),
    ("audio", "input", "turn_detection", "idle_timeout_ms"),
    ("audio", "input", "noise_reduction"),
    ("audio", "input", "transcription"),
    ("prompt",),
    ("tracing",),
)
"""Fields that take ``null`` in the protocol, and ``false`` in TOML, which has no null."""


class Finding(NamedTuple):
    """A problem at ``path`` of a session object; ``unknown`` where the field may only be newer."""

    path: KeyPath
    message: str
    unknown: bool


def nulled(session: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the ``null`` of the protocol wherever the dialplan says ``false``."""
    return _nulled(session, ())  # type: ignore[no-any-return]


def _nulled(value: Any, path: KeyPath) -> Any:
    if value is False and path in OFF:
        return None
    if isinstance(value, Mapping):
        return {name: _nulled(inner, (*path, name)) for name, inner in value.items()}
    return value


def judge_session(session: Mapping[str, Any]) -> list[Finding]:
    """Yield every problem of ``session``, as it stands in the file."""
    given = nulled(session)
    try:
        SessionModel.model_validate(given)
    except ValidationError as error:
        found = [_finding(detail, given) for detail in error.errors(include_url=False)]
        return [one for one in found if not _filled_in(given, one.path)]
    return []


def only_beta(session: Mapping[str, Any]) -> list[Finding]:
    """Yield fields that the GA protocol rejects and the Beta protocol accepts."""
    if "temperature" in session:
        message = 'is a setting of Beta servers (dialect = "beta"); GA has none'
        return [Finding(("temperature",), message, False)]
    return []


def _filled_in(session: Any, path: KeyPath) -> bool:
    """Return whether variables are filled in there, so that it cannot be checked now."""
    for step in path:
        try:
            session = session[step]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(session, str) and bool(names_in(session))


def _finding(detail: Any, session: Any) -> Finding:
    path: list[str | int] = []
    here: Any = session
    known = detail["type"] != "extra_forbidden"
    for step in detail["loc"]:
        # Names of a union's branches lead nowhere in the file.
        if isinstance(here, dict) and isinstance(step, str):
            if step not in here and step != detail["loc"][-1]:
                continue
            path.append(step)
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            path.append(step)
            here = here[step]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, MisplacedError):
        path += cause.below
    if not known:
        return Finding(tuple(path), "is no setting that this gateway knows" + _hint(path), True)
    return Finding(tuple(path), _words(detail), detail["type"] == UNKNOWN)


def _hint(path: list[str | int]) -> str:
    model: Any = SessionModel
    for step in path[:-1]:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        if field is None and not isinstance(step, int):
            return ""
        model = TABLES.get(str(step), model)
    return suggestion(str(path[-1]), model.model_fields)


def _words(detail: Any) -> str:
    kind, text = detail["type"], str(detail["msg"])
    if kind == "missing":
        return "is required"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a table"
    text = text.removeprefix("Value error, ").replace("Input should be", "must be")
    return text.replace("a valid ", "a ").replace("a integer", "an integer")
