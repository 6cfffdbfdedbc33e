"""Kinds of value that several tables of the configuration and of dialplans have in common."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationInfo

from gateway.config.source import Reference


def _from_reference(value: object) -> object:
    """A number or a flag that came out of the environment, where everything is text."""
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
Seconds = Annotated[float, Strict(), Field(gt=0), Typed]
SecondsOrOff = Annotated[float, Strict(), Field(ge=0), Typed]
Flag = Annotated[bool, Strict(), Typed]
Text = Annotated[str, Field(min_length=1)]


def ip_literal(value: str) -> str:
    """``value`` as canonical IPv4 or IPv6 address; raises ValueError."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("the address must be IPv4 or IPv6, not a name") from None


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty; leave the key out instead")
    return value


def _below_config(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None else Path(folder, path.expanduser())


FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_below_config)]
