"""Addresses and headers of HTTP services that configuration and dialplans name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, PlainSerializer, SecretStr

from gateway.config.problems import MisplacedError

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SET_BY_US = frozenset({"host", "content-length", "connection", "transfer-encoding", "upgrade"})


def http_url(value: str) -> str:
    """``value`` if it can be an HTTP service's address; raises ValueError."""
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL: the host or the port cannot be read") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if not host or any(char.isspace() for char in value):
        raise ValueError("must name a host and contain no space")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry user or password; use headers")
    if parts.fragment:
        raise ValueError("must not have a #fragment")
    if "{" in parts.netloc:
        raise ValueError("must not have variables in the host: callers would choose it")
    return value


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise MisplacedError((name,), "is no name of an HTTP header")
        if name.lower() in _SET_BY_US:
            raise MisplacedError((name,), "is set by the gateway")
        if not re.fullmatch(r"[ -~]*", text.get_secret_value()):
            raise MisplacedError((name,), "has characters that no header may have")
    return MappingProxyType(dict(value))


HttpUrl = Annotated[str, AfterValidator(http_url)]
HttpHeaders = Annotated[
    Mapping[str, SecretStr], AfterValidator(_headers), PlainSerializer(lambda value: dict(value))
]
"""Header fields; their values are secrets."""


def shown(values: Mapping[str, SecretStr]) -> dict[str, str]:
    """The values themselves, for sending."""
    return {name: value.get_secret_value() for name, value in values.items()}
