# SPDX-License-Identifier: GPL-2.0-or-later
"""``error`` events of the protocol, with the codes and texts that the service was seen to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class ProtocolError(Exception):
    """A client event is refused: becomes one ``error`` event, the session goes on."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        type_: str = "invalid_request_error",
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.param = param
        self.type = type_


_OF_A_TYPE = "_type"
_MISSING = ("missing", "union_tag_not_found")


def from_validation(error: ValidationError, data: object, root: str) -> ProtocolError:
    """The first mistake that pydantic found in ``data``, in the service's words.

    ``root`` is the path of ``data`` in the client event (``session``, ``item``, or empty).
    """
    first = error.errors(include_url=False)[0]
    kind, location = first["type"], first["loc"]
    path = _path(location, data, kind == "missing")
    if kind == "union_tag_not_found":
        path = [*path, "type"]
    param = _join(root, path)
    if kind == "extra_forbidden":
        return ProtocolError("unknown_parameter", f"Unknown parameter: '{param}'.", param)
    if kind in _MISSING:
        message = f"Missing required parameter: '{param}'."
        return ProtocolError("missing_required_parameter", message, param)
    code = "invalid_type" if kind.endswith(_OF_A_TYPE) else "invalid_value"
    return ProtocolError(code, f"Invalid value for '{param}': {first['msg']}.", param)


def _path(location: Sequence[str | int], data: object, missing: bool) -> list[str | int]:
    """``location`` without the names that pydantic adds for the members of a union."""
    path: list[str | int] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(data, dict) and (step in data or (missing and last)):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            continue
        path.append(step)
    return path


def _join(root: str, path: Sequence[str | int]) -> str:
    text = root
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def validated(model: type[Model], data: object, root: str) -> Model:
    """``data`` as ``model``. Raises :class:`ProtocolError` naming the first mistake."""
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        raise from_validation(error, data, root) from None


def checked(adapter: TypeAdapter[Any], data: object, root: str) -> Any:
    """``data`` as the adapter's type. Raises :class:`ProtocolError` naming the first mistake."""
    try:
        return adapter.validate_python(data, strict=True)
    except ValidationError as error:
        raise from_validation(error, data, root) from None
