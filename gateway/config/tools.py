# SPDX-License-Identifier: GPL-2.0-or-later
"""``[tools]`` and ``[callbacks]``: functions of the model that all routes may offer, and the MCP
servers that the gateway or the realtime server calls."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, model_validator

from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import (
    Count,
    FilePath,
    HttpHeaders,
    HttpUrl,
    Seconds,
    SecondsOrOff,
    Text,
    shown,
)


def _server_name(value: str) -> str:
    # It stands before the names of its tools, which have 64 characters in all.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", value):
        raise ValueError("must be 1 to 32 letters, digits, dashes and underlines")
    return value


class NeedsApproval(Section):
    """``require_approval`` tool by tool."""

    always: tuple[Text, ...] = ()
    never: tuple[Text, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it in the form of the realtime API."""
        named = {"always": self.always, "never": self.never}
        return {key: {"tool_names": list(names)} for key, names in named.items() if names}


class McpServerSettings(Section):
    """``[[tools.mcp]]``: one server of the Model Context Protocol."""

    name: Annotated[str, AfterValidator(_server_name)]
    client: Literal["gateway", "provider"] = "gateway"
    url: HttpUrl | None = None
    connector_id: Text | None = None
    command: tuple[Text, ...] = ()
    env: Annotated[Mapping[str, SecretStr], PlainSerializer(lambda value: dict(value))] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    authorization: SecretStr | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    description: str = ""
    allowed_tools: tuple[Text, ...] = ()
    require_approval: Literal["always", "never"] | NeedsApproval = "never"
    connect_timeout: Seconds = 10.0
    timeout: Seconds = 20.0
    filler_delay: SecondsOrOff = 0.0
    filler_text: str = ""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        ways = [bool(self.url), bool(self.command), bool(self.connector_id)]
        if sum(ways) != 1:
            raise ValueError("must have one of url, command and connector_id")
        if self.client == "provider" and self.command:
            raise MisplacedError(("command",), "the realtime server cannot run a command of ours")
        if self.client == "gateway" and self.connector_id:
            raise MisplacedError(
                ("connector_id",), 'is known to the realtime server: client = "provider"'
            )
        if not self.command and self.env:
            raise MisplacedError(("env",), "means nothing without command")
        if self.client == "gateway" and importlib.util.find_spec("mcp") is None:
            raise ValueError(
                "needs the package mcp: pip install 'sip-realtime-gateway[mcp]', or let the "
                'realtime server call it: client = "provider"'
            )
        return self

    def session_tool(self) -> dict[str, Any]:
        """Return the entry of the session object (GA ``tools``); the provider calls the server."""
        tool: dict[str, Any] = {"type": "mcp", "server_label": self.name}
        if self.url:
            tool["server_url"] = self.url
        if self.connector_id:
            tool["connector_id"] = self.connector_id
        if self.authorization is not None:
            tool["authorization"] = self.authorization.get_secret_value()
        if self.headers:
            tool["headers"] = shown(self.headers)
        if self.description:
            tool["server_description"] = self.description
        if self.allowed_tools:
            tool["allowed_tools"] = list(self.allowed_tools)
        needs = self.require_approval
        tool["require_approval"] = needs if isinstance(needs, str) else needs.as_json()
        return tool

    def needs_approval(self, tool: str) -> bool:
        """Whether this tool may be used by approval only."""
        needs = self.require_approval
        if isinstance(needs, str):
            return needs == "always"
        return tool in needs.always or (bool(needs.never) and tool not in needs.never)

    def secrets(self) -> Iterator[str]:
        """Texts that no log may hold."""
        if self.authorization is not None:
            yield self.authorization.get_secret_value()
        for value in (*self.headers.values(), *self.env.values()):
            yield value.get_secret_value()


class ToolSettings(Section):
    """``[tools]``: functions that are run by the gateway."""

    module: Text | None = None
    search_path: FilePath = Field(default=Path(), validate_default=True)
    threads: Count = 8
    timeout: Seconds = 20.0
    max_result_chars: Annotated[Count, Field(le=200_000)] = 8000
    http_connections: Count = 50
    http_proxy: HttpUrl | None = None
    mcp: tuple[McpServerSettings, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [server.name for server in self.mcp]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise MisplacedError(("mcp", index, "name"), "is there twice")
        return self

    def secrets(self) -> Iterator[str]:
        """Texts that no log may hold."""
        for server in self.mcp:
            yield from server.secrets()


class CallbackSettings(Section):
    """``[callbacks]``: what ``schedule_callback`` leads to."""

    file: FilePath | None = None
    max_pending: Count = 500
    url: HttpUrl | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    auto_dial: bool = False
    expire_after: Seconds = 900.0
