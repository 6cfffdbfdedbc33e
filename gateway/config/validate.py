# SPDX-License-Identifier: GPL-2.0-or-later
"""Pydantic's findings turned into problems with file, line and full key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.renamed import ABSENT_KEYS, RENAMED_KEYS, RENAMED_VALUES
from gateway.config.source import KeyPath, MisplacedError, Problem, Reference, TomlSource


class Section(BaseModel):
    """Base of every table: immutable, and no key that is not known.

    ``hide_input_in_errors`` because the input may be a secret.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        populate_by_name=False,
    )


def problems_of(
    error: ValidationError, model: type[BaseModel], source: TomlSource, base: KeyPath = ()
) -> list[Problem]:
    """The problems that ``error`` tells of ``model`` validated from the table at ``base``."""
    found: list[Problem] = []
    details = error.errors(include_url=False, include_context=True)
    for detail in details:
        if detail["type"] == "too_short" and any(
            other["loc"][:-1] == detail["loc"] for other in details
        ):
            continue  # only because its elements are wrong, which is said of them
        path = (*base, *(part for part in detail["loc"] if part != "[key]"))
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, MisplacedError):
            path += cause.below
        if any(path[: len(bad)] == bad for bad in source.unresolved):
            continue
        found.append(source.problem(path, _message(detail, model, source, path)))
    return found


def known_keys(model: type[BaseModel]) -> list[str]:
    """The keys of a section as they are written in the file."""
    return [item.alias or name for name, item in model.model_fields.items()]


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` for the likeliest of ``known``, else the whole choice."""
    known = list(known)
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def _message(
    detail: ErrorDetails, model: type[BaseModel], source: TomlSource, path: KeyPath
) -> str:
    kind = detail["type"]
    loc = detail["loc"]
    if kind == "extra_forbidden":
        owner = _model_at(model, loc[:-1])
        name = RENAMED_KEYS.get(_dotted(path))
        if name is not None:
            return f'unknown key; it is called "{name}" now'
        if (why := ABSENT_KEYS.get(_dotted(path))) is not None:
            return f"unknown key; {why}"
        return "unknown key" + suggestion(str(loc[-1]), known_keys(owner) if owner else [])
    if kind == "missing":
        return "missing, and it has no default"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return "must be a table"
    if kind in ("tuple_type", "list_type"):
        fields = [part for part in loc if isinstance(part, str)]
        if isinstance(_value_at(source.data, path), dict) and _model_at(model, loc) is not None:
            return f"must be an array of tables: write [[{'.'.join(fields)}]]"
        return "must be an array"
    text = detail["msg"]
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    text = text.replace("Input should be", "must be").replace("a valid ", "a ")
    text = text.replace("a integer", "an integer").replace("Tuple should", "must")
    if kind == "literal_error":
        value = _value_at(source.data, path)
        name = RENAMED_VALUES.get((_dotted(path), value)) if isinstance(value, str) else None
        if name is not None:
            return f'{text}; "{value}" is called "{name}" now'
    return text + _as_written(_value_at(source.data, path), quote=kind == "literal_error")


def _dotted(path: KeyPath) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _as_written(value: Any, quote: bool = False) -> str:
    """`` (is 7)``: what the file says, if that is short; never what a reference stands for.

    ``quote`` shows plain strings too: not where the author may have written a secret.
    """
    if isinstance(value, Reference):
        return f" (is {value.written!r})" if len(value.written) <= 60 else ""
    if isinstance(value, bool):
        return f" (is {str(value).lower()})"
    if isinstance(value, int | float) or (quote and isinstance(value, str)):
        return f" (is {value!r})" if len(str(value)) <= 60 else ""
    return ""


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _model_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section that ``loc`` leads to, through optional fields and arrays of tables."""
    here: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int):
            continue
        if here is None:
            return None
        fields = {item.alias or name: item for name, item in here.model_fields.items()}
        here = section_in(fields[part].annotation) if part in fields else None
    return here


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds, be it optional or many; None for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            if (found := section_in(inner)) is not None:
                return found
    return None
