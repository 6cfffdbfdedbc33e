# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of value that several tables of the configuration and of dialplans have in common."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    Strict,
    ValidationInfo,
)

from gateway.config.source import MisplacedError, Reference
from gateway.text import path_of

_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)
_MANY = 16
"""A repetition that may go on for longer counts as endless."""


def pattern_of(text: str) -> re.Pattern[str]:
    r"""Compile a regular expression. Raises ValueError with the reason.

    A repetition within a repetition with nothing fixed between them, as in ``(\d+)+``, is refused:
    its time doubles with each further character of a text that does not match.
    """
    try:
        compiled = re.compile(text)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos + 1}"
        if re.search(r"(^|[|(^])\+", text):
            where += "; the + of a number is written \\+, in single quotes: '^\\+49'"
        raise ValueError(f"is not a valid regular expression: {error.msg}{where}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if _runs_away(parser.parse(text)):
        raise ValueError(
            "may take exponential time: it repeats a repetition with nothing fixed between, "
            "as (\\d+)+ does"
        )
    return compiled


def _runs_away(parts: Any) -> bool:
    """Return whether a parsed expression repeats a repetition with nothing fixed between."""
    for code, value in parts:
        if code in _REPEATS and value[1] > _MANY and _is_loose(value[2]) and _has_endless(value[2]):
            return True
        if any(_runs_away(inner) for inner in _inside(code, value)):
            return True
    return False


def _is_loose(parts: Any) -> bool:
    """Return whether every part of a parsed expression may be left out or repeated without end."""
    return all(
        code is codes.AT
        or (code in _REPEATS and (value[0] == 0 or value[1] > _MANY))
        or (code is codes.SUBPATTERN and _is_loose(value[-1]))
        or (code is codes.BRANCH and any(_is_loose(one) for one in value[1]))
        for code, value in parts
    )


def _has_endless(parts: Any) -> bool:
    return any(
        (code in _REPEATS and value[1] > _MANY)
        or any(_has_endless(inner) for inner in _inside(code, value))
        for code, value in parts
    )


def _inside(code: Any, value: Any) -> tuple[Any, ...]:
    """Return the parts within a part of a parsed expression."""
    if code in _REPEATS:
        return (value[2],)
    if code is codes.SUBPATTERN:
        return (value[-1],)
    if code is codes.BRANCH:
        return tuple(value[1])
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return (value[1],)
    return ()


def _regex(value: object) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a regular expression, as a string")
    return pattern_of(value)


Regex = Annotated[re.Pattern[str], BeforeValidator(_regex)]


def _from_reference(value: object) -> object:
    """Return the number or flag in the text of a ``${...}``; other values unchanged."""
    if not isinstance(value, Reference):
        return value
    text = value.strip()
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return value


# TOML has types: "100" is not 100, true is not 1, and 5.0 calls are none.
Typed = BeforeValidator(_from_reference)
Count = Annotated[int, Strict(), Field(ge=1), Typed]
Milliseconds = Annotated[int, Strict(), Field(ge=0), Typed]
PacketWait = Annotated[int, Strict(), Field(ge=20, le=500), Typed]
"""Milliseconds that a missing RTP packet is waited for: at least one packet's time."""
Seconds = Annotated[float, Strict(), Field(gt=0), Typed]
SecondsOrOff = Annotated[float, Strict(), Field(ge=0), Typed]
Flag = Annotated[bool, Strict(), Typed]
Text = Annotated[str, Field(min_length=1)]


def ip_literal(value: str) -> str:
    """Return ``value`` as canonical IPv4 or IPv6 address; raises ValueError."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("the address must be IPv4 or IPv6, not a name") from None


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network_of(text: str, expected: str) -> Network:
    """Parse an address or network, in which no bits of the host may be set.

    Raises ValueError with the network that was meant, or with ``expected`` where it is none.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(expected) from None
        raise ValueError(f"has host bits set; did you mean {meant}?") from None


def name_of(value: str) -> str:
    """Return ``value`` if it may be a name in a configuration; raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes and underlines")
    return value


Name = Annotated[str, AfterValidator(name_of)]
"""Stands in logs, labels of metrics and names of files."""


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty; leave the key out instead")
    return value


def _below_config(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None else Path(folder, path_of(str(path)))


FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_below_config)]


def refuse_duplicates(names: Iterable[str], *array: str) -> None:
    """Raise MisplacedError where two tables of an array have the same name.

    Args:
        names: those of the tables, in their order.
        array: path of the array in the table that is validated.
    """
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise MisplacedError((*array, index, "name"), "is used twice")
        seen.add(name)


_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SET_BY_US = frozenset({"host", "content-length", "connection", "transfer-encoding", "upgrade"})


def url_parts(value: str, begin: str, instead: str) -> SplitResult:
    """Return the parts of a URL with a scheme that ``begin`` has (``http:// or https://``), a host,
    and neither credentials (the keys ``instead`` are for those) nor a fragment; raises ValueError
    for others."""
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(
            "is not a URL: the host or the port cannot be read (an IPv6 address is in brackets)"
        ) from None
    if parts.scheme not in re.findall(r"(\w+)://", begin):
        raise ValueError(f"must begin with {begin}")
    if not host or any(char.isspace() for char in value):
        raise ValueError("must name a host and contain no space")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"must not carry user or password; use {instead}")
    if parts.fragment:
        raise ValueError("must not have a #fragment")
    return parts


def http_url(value: str) -> str:
    """Return ``value`` if it is the URL of an HTTP service; raises ValueError."""
    parts = url_parts(value, "http:// or https://", "headers")
    if "{" in parts.netloc:
        raise ValueError("must not have variables in the host: callers would choose it")
    return value


def check_header(name: str, text: SecretStr) -> None:
    """Refuse an HTTP header (RFC 9110 section 5) that cannot be sent. Raises MisplacedError."""
    if not _HEADER_NAME.fullmatch(name):
        raise MisplacedError((name,), "is not a valid HTTP header name")
    if not re.fullmatch(r"[ -~]*", text.get_secret_value()):
        raise MisplacedError((name,), "has characters that are not allowed in a header")


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    """Refuse headers that the gateway sets itself, or that are malformed."""
    for name, text in value.items():
        check_header(name, text)
        if name.lower() in _SET_BY_US:
            raise MisplacedError((name,), "is set by the gateway")
    return MappingProxyType(dict(value))


HttpUrl = Annotated[str, AfterValidator(http_url)]
HttpHeaders = Annotated[
    Mapping[str, SecretStr], AfterValidator(_headers), PlainSerializer(lambda value: dict(value))
]
"""Header fields; their values are secrets."""


def shown(values: Mapping[str, SecretStr]) -> dict[str, str]:
    """Return headers or variables with their secrets as plain text, to be sent."""
    return {name: value.get_secret_value() for name, value in values.items()}
