"""What the gateway would make of an INVITE. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from gateway.bridge.dialplan_lookup import with_data
from gateway.config import Config
from gateway.devtools.route_test.given import GivenError
from gateway.dialplan import Dialplan, InviteFacts, Match
from gateway.dialplan.variables import AS_WRITTEN
from gateway.log import BLANK, Redactor
from gateway.planning.call_plan import call_plan, codec_of, facts_of, session_plan, sip_settings
from gateway.planning.route_tools import tool_executor
from gateway.planning.tools import metadata_of
from gateway.sip.trunks.matching import Trunks
from gateway.sip.types import Invite

Fetch = Callable[[Match], tuple[Any, str]]
"""Brings the data of a call, None for none, and says where they are from or why there are none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One route: why it does not match, empty when it does."""

    name: str
    where: str
    refusal: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is shown; nothing in it is secret. ``route`` is empty when none matches."""

    facts: InviteFacts
    attributed_by: str
    access: str
    """What keeps this INVITE from every route, if something does."""
    verdicts: tuple[Verdict, ...]
    route: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    cleaned: tuple[str, ...] = ()
    server: str = ""
    model: str = ""
    session: Any = None
    greeting: Any = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    """What is in the place of the data that a call would fetch, if it would."""

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON object."""
        facts = {**asdict(replace(self.facts, headers={})), "at": self.facts.at.isoformat()}
        facts["headers"] = {name: list(values) for name, values in self.facts.headers.items()}
        return {
            "facts": facts,
            "attributed_by": self.attributed_by,
            "access": self.access,
            "routes": [asdict(verdict) for verdict in self.verdicts],
            "route": self.route or None,
            "variables": self.variables,
            "cleaned": list(self.cleaned),
            "server": self.server,
            "model": self.model,
            "session": self.session,
            "response": self.greeting,
            "metadata": dict(self.metadata),
            "data": self.data,
        }


def answer(
    config: Config,
    dialplan: Dialplan,
    invite: Invite,
    at: datetime,
    trunk: str | None,
    data: Fetch | None = None,
) -> Answer:
    """Judge ``invite``; ``data`` brings what the route would fetch.

    Raises GivenError for a trunk that is not there.
    """
    settings = sip_settings(config)
    trunks = Trunks(settings.trunks)
    how = "as given"
    if trunk is None:
        host, _, port = invite.source.rpartition(":")
        reliable = "/tcp" in _via(invite) or "/tls" in _via(invite)
        found = trunks.attribute(host.strip("[]"), int(port), reliable, invite.to_uri)
        trunk, how = (found.trunk.name, found.how) if found else ("", "")
    elif trunk not in trunks.by_name:
        known = ", ".join(trunks.by_name) or "none is configured"
        raise GivenError(f"--trunk {trunk!r}: there is no such trunk ({known})")
    invite = replace(invite, trunk=trunk)
    facts = facts_of(invite, at)
    verdicts = tuple(
        Verdict(
            one.route.name,
            str(dialplan.origins[one.route.name]),
            str(one).partition(": ")[2] if one.refusal else "",
        )
        for one in dialplan.explain(facts)
    )
    access = ""
    if not trunk:
        verdict = settings.access.verdict(facts.source_ip, bool(settings.trunks))
        if verdict != "allow":
            done = {"reject": "refused", "drop": "dropped"}[verdict]
            access = f"access.unknown_sources: this source is no trunk's, so its calls are {done}"
    return _with_route(Answer(facts, how, access, verdicts), config, dialplan, invite, data)


def _via(invite: Invite) -> str:
    return next(iter(invite.headers.get("via", ())), "").lower().partition(" ")[0]


def _with_route(
    found: Answer, config: Config, dialplan: Dialplan, invite: Invite, data: Fetch | None
) -> Answer:
    match = dialplan.match(found.facts)
    if match is None:
        return found
    told = ""
    if match.route.data is not None:
        got, told = (None, "not fetched: the defaults") if data is None else data(match)
        match = with_data(match, got)
    codec = codec_of(invite)
    # Tools of MCP servers are not among these: nothing is started here.
    plan = session_plan(config, match.route, codec, match.values, tool_executor(config, dialplan))
    hide = _Hide((*config.secrets(), *dialplan.secrets()))
    return replace(
        found,
        route=match.route.name,
        variables={name: hide(value) for name, value in match.values.items()},
        cleaned=match.cleaned,
        server=plan.endpoint.shown,
        model=plan.endpoint.model,
        session=hide(plan.settings),
        greeting=hide(call_plan(config, match, codec, 0).greeting),
        metadata=hide(metadata_of(match.route, match.values)),
        data=told,
    )


class _Hide:
    """Takes secrets out of a JSON value."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._redact = Redactor(secrets)

    def __call__(self, value: Any, secret: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {
                name: self(inner, secret or name in AS_WRITTEN) for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self(inner, secret) for inner in value]
        if isinstance(value, str):
            return BLANK if secret else self._redact(None, "", value)
        return value
