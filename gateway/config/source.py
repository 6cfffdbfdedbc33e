# SPDX-License-Identifier: GPL-2.0-or-later
"""A TOML file as read, and what is wrong in it: problems with file, line and key.

References may stand in any string: ``${env:NAME}``, ``${env:NAME:-default}`` (used when the
variable is unset or empty, as in a shell) and ``${file:PATH}`` (relative to the file that names
it, trailing newlines dropped). ``$${`` writes a literal ``${``.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.renamed import ABSENT_KEYS, RENAMED_KEYS, RENAMED_VALUES, syntax_hint
from gateway.text import path_of

KeyPath = tuple[str | int, ...]
"""Path of a value: names of tables and keys, and 0-based indexes into arrays."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake: ``line`` counts from 1, ``key`` is the full dotted path ("" for the file)."""

    file: Path
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


class ConfigError(Exception):
    """A configuration or dialplan that cannot be used; carries every problem that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class MisplacedError(ValueError):
    """Raised by a validator of a whole table: what is wrong is at ``below`` in it."""

    def __init__(self, below: KeyPath, message: str) -> None:
        super().__init__(message)
        self.below = below


def dotted(path: KeyPath) -> str:
    """Return a path as it is written in messages: ``("sip", "listen", 0)`` as ``sip.listen[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part and part.replace("-", "").isidentifier() else f'"{part}"'
            text += f".{name}" if text else name
    return text


MAX_FILE_BYTES = 1024 * 1024
"""More than this is no configuration, secret or prompt, but a wrong path."""

_REFERENCE = re.compile(
    r"(?P<escaped>\$\$\{)|\$\{(?P<scheme>[A-Za-z_]\w*)(?::(?P<argument>[^}]*))?\}"
    r"|\$\{(?P<malformed>\s*[A-Za-z][^{}]*)\}"
)
_SYNTAX_POSITION = re.compile(r"\s*\((?:at line (\d+), column (\d+)|at end of document)\)$")


class Reference(str):
    """Text that came, in part or whole, out of a ``${...}``; ``written`` is what the file says.

    Messages quote ``written``, so that a secret shows up in none of them.
    """

    __slots__ = ("written",)
    written: str

    def __new__(cls, text: str, written: str) -> Reference:
        made = super().__new__(cls, text)
        made.written = written
        return made


def plain(value: Any) -> Any:
    """Return a copy of a TOML value in which each :class:`Reference` is an ordinary string."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return str.__str__(value) if isinstance(value, Reference) else value


@dataclass(frozen=True)
class TomlSource:
    """Values of one file, the lines of its keys, and the problems found so far."""

    file: Path
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]
    problems: list[Problem] = field(default_factory=list)
    unresolved: set[KeyPath] = field(default_factory=set)
    """Keys whose reference could not be filled in: already reported, so not judged again."""

    def line(self, path: KeyPath) -> int:
        """Return the line of ``path``, or of the nearest table above it if it is not set."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def value(self, path: KeyPath) -> Any:
        """Return the file's value at ``path``; None where it has none."""
        found: Any = self.data
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Return a problem at ``path`` in this file."""
        return Problem(self.file, self.line(path), dotted(path), message)

    def report(self, path: KeyPath, message: str) -> None:
        """Add a problem at ``path``."""
        self.problems.append(self.problem(path, message))


MAX_TOML_BYTES = 8 * 1024 * 1024

MAX_DOTS = 1000
"""In a key."""


def read_toml(file: Path, environ: Mapping[str, str] | None = None) -> TomlSource:
    """Read ``file`` and fill in its references from ``environ`` (the process's by default).

    Raises ConfigError when the file cannot be read or is not TOML; a reference that cannot be
    filled in is a problem of the returned source, beside those that are found later.
    """
    try:
        raw = _content(file, MAX_TOML_BYTES)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            [Problem(file, 1, "", f"cannot be read: {error.strerror or error}")]
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(file, line, "", "is not UTF-8 text")]) from None
    try:
        if any(line.partition("=")[0].count(".") > MAX_DOTS for line in text.split("\n")):
            raise RecursionError  # the parser's memory grows by the square of it
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(file, text, str(error))]) from None
    except ValueError:  # of Python: thousands of digits
        raise ConfigError([Problem(file, 1, "", "TOML syntax: a number is too long")]) from None
    except RecursionError:
        raise ConfigError([Problem(file, 1, "", "TOML syntax: nested too deeply")]) from None
    source = TomlSource(file, data, key_lines(text))
    source.data.update(_fill(data, (), source, os.environ if environ is None else environ))
    return source


def _content(file: Path, most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes. Raises OSError for a larger one, and for
    a pipe or device, where a reload would wait, or read, for ever."""
    with open(
        file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
    ) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(0, "it is no regular file")
        raw = opened.read(most + 1)
    if len(raw) > most:
        raise OSError(0, f"it is larger than {most} bytes")
    return raw


def mode_of(path: Path) -> int:
    """Return the ``st_mode`` of what is at a path; 0 where nothing is, or nobody may look."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # a NUL, among others
        return 0


def _syntax_problem(file: Path, text: str, said: str) -> Problem:
    """Return the problem of a file that is no TOML, with line, column and hint."""
    match = _SYNTAX_POSITION.search(said)
    line = text.rstrip().count("\n") + 1
    column, at = "", 0
    if match and match[1]:
        line, at = int(match[1]), int(match[2])
        column = f" (column {at})"
    message = said[: match.start()] if match else said
    lines = text.split("\n")
    hint = syntax_hint(lines[line - 1] if line <= len(lines) else "", message, at)
    return Problem(file, line, "", f"TOML syntax: {message}{column}{hint}")


def _fill(value: Any, path: KeyPath, source: TomlSource, environ: Mapping[str, str]) -> Any:
    """Return a value with its references replaced; report those that cannot be."""
    if isinstance(value, dict):
        return {name: _fill(inner, (*path, name), source, environ) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, (*path, index), source, environ) for index, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        if match["malformed"]:
            named = re.fullmatch(r"\s*env\W+(\w+)\W*", match["malformed"])  # else, not shown
            name = named[1] if named else "NAME"
            source.report(path, f"a ${{...}} of it is no reference; write ${{env:{name}}}")
            source.unresolved.add(path)
            return ""
        try:
            return _resolve(match["scheme"], match["argument"], source.file.parent, environ)
        except LookupError as error:
            source.report(path, str(error.args[0]))
            source.unresolved.add(path)
            return ""

    return Reference(_REFERENCE.sub(replace, value), value)


def _resolve(scheme: str, argument: str | None, folder: Path, environ: Mapping[str, str]) -> str:
    """Return the text of one reference. Raises LookupError with the message for the author."""
    if argument is None:
        raise LookupError(
            f"${{{scheme}}} is not a reference; write ${{env:{scheme}}} for an environment "
            f"variable, ${{file:PATH}} for a file's text, or $${{{scheme}}} for these characters"
        )
    if scheme == "env":
        name, has_default, default = argument.partition(":-")
        found = environ.get(name)
        if has_default:
            return found or default
        if found is None:
            raise LookupError(f"environment variable {name or '(no name)'} is not set")
        return found
    if scheme == "file":
        return _read_reference(folder, argument)
    raise LookupError(f"unknown reference ${{{scheme}:...}}; there are ${{env:...}}, ${{file:...}}")


def _read_reference(folder: Path, name: str) -> str:
    """Return the text of a ``${file:PATH}``. Raises LookupError."""
    try:
        raw = _content(folder / path_of(name), MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LookupError(f"file {name or '(no name)'} cannot be read: {reason}") from None
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise LookupError(f"file {name} is not UTF-8 text") from None


_CLOSINGS = ("]", '"""', "'''")
"""Ends of statements that span lines: the last line contains one of them."""


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line of every key path of valid TOML, counted from 1.

    Elements of an array that spans lines have their own lines; all keys of an inline table have
    the line of the statement that holds it. The empty path is line 1.
    """
    found: dict[KeyPath, int] = {(): 1}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, chunk, value in _statements(text):
        if chunk[0].lstrip().startswith("["):
            table = _enter(value, arrays)
            for depth in range(1, len(table) + 1):
                found.setdefault(table[:depth], line)
            continue
        for path, offset in _leaves(chunk, value):
            for depth in range(1, len(path) + 1):
                found.setdefault(table + path[:depth], line + offset)
    return found


def _statements(text: str) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
    """Cut valid TOML into statements: first line, its lines, and what it means on its own."""
    chunk: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        chunk.append(line)
        if len(chunk) > 1 and not any(closing in line for closing in _CLOSINGS):
            continue  # still inside; trying each line of a long prompt would take its time squared
        try:
            value = tomllib.loads("\n".join(chunk))
        except tomllib.TOMLDecodeError:
            continue
        if value:
            yield number - len(chunk) + 1, chunk, value
        chunk = []


def _enter(header: dict[str, Any], arrays: dict[KeyPath, int]) -> KeyPath:
    """Turn a header parsed alone into the path of the table it opens; count array elements."""
    path: KeyPath = ()
    node: Any = header
    while isinstance(node, dict) and node:
        ((name, node),) = node.items()
        path = (*path, name)
        if isinstance(node, list):
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
        if isinstance(node, list):
            break
    return path


def _leaves(chunk: list[str], value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Every path below a statement, with the number of lines below the statement's first."""
    if isinstance(value, dict):
        if path:
            yield path, 0
        for name, inner in value.items():
            yield from _leaves(chunk, inner, (*path, name))
        return
    yield path, 0
    if not isinstance(value, list):
        return
    offsets = _element_offsets(chunk, path, len(value))
    for index, inner in enumerate(value):
        for below, _ in _leaves([], inner, (*path, index)):
            yield below, offsets[index]


def _element_offsets(chunk: list[str], path: KeyPath, count: int) -> list[int]:
    """The line of each element of a statement's array, found by closing the array early."""
    offsets: list[int] = []
    first_free = 0
    for end in range(len(chunk) if len(chunk) > 1 else 0):
        try:
            node: Any = tomllib.loads("\n".join([*chunk[: end + 1], "]"]))
            for part in path:
                node = node[part]
        except (tomllib.TOMLDecodeError, KeyError, IndexError, TypeError):
            continue
        for _ in range(len(offsets), len(node)):
            offsets.append(_first_content(chunk, first_free, end))
        first_free = end + 1
    return [*offsets, *[0] * (count - len(offsets))][:count]


def _first_content(chunk: list[str], start: int, end: int) -> int:
    for offset in range(start, end):
        text = chunk[offset].strip()
        if text and not text.startswith("#"):
            return offset
    return end


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

    def secrets(self) -> tuple[str, ...]:
        """Return every secret text in it or below, for a log filter that lets none through."""
        return tuple(_secrets_in([getattr(self, name) for name in type(self).model_fields]))


def _secrets_in(value: Any) -> Iterator[str]:
    if isinstance(value, Section):
        yield from value.secrets()
    elif isinstance(value, SecretStr):
        if text := value.get_secret_value():
            yield text
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _secrets_in(inner)


def problems_of(
    error: ValidationError, model: type[BaseModel], source: TomlSource, base: KeyPath = ()
) -> list[Problem]:
    """Return what pydantic found in the table at ``base`` as problems with line and key."""
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
    """Return the keys of a section as they are written in the file."""
    return [item.alias or name for name, item in model.model_fields.items()]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the likeliest of ``known``, else a list of all."""
    known = list(known)
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def _message(
    detail: ErrorDetails, model: type[BaseModel], source: TomlSource, path: KeyPath
) -> str:
    """Return the message for the author of a file about one error of pydantic's."""
    kind, loc = detail["type"], detail["loc"]
    if kind == "extra_forbidden":
        owner = _model_at(model, loc[:-1])
        if (name := RENAMED_KEYS.get(_dotted(path))) is not None:
            return f'unknown key; it is called "{name}" now'
        if (why := ABSENT_KEYS.get(_dotted(path))) is not None:
            return f"unknown key; {why}"
        known = known_keys(owner) if owner else []
        above = _dotted(path[: len(path) - len(loc)])
        if owner is not model and loc[-1] in known_keys(model) and loc[-1] not in known:
            home = f"above [{_dotted(path[:-1])}]" if above else "in a table of its own"
            return f"unknown key; {'.'.join(filter(None, [above, str(loc[-1])]))} stands {home}"
        return "unknown key" + suggestion(str(loc[-1]), known)
    if kind == "missing":
        return "missing, and it has no default"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return f"must be a table: write [{_dotted(path)}]"
    if kind in ("tuple_type", "list_type"):
        if isinstance(source.value(path), dict) and _model_at(model, loc) is not None:
            return f"must be an array of tables: write [[{_dotted(path)}]]"
        return "must be an array, in [ ]"
    if kind == "path_type":
        return "must be the path of a file" + _as_written(source.value(path))
    text = detail["msg"]
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    text = text.replace("Input should be", "must be").replace("a valid ", "a ")
    text = text.replace("a integer", "an integer").replace("Tuple should", "must")
    text = text.replace("String should", "must").replace("1 characters", "1 character")
    text = text.replace("must have at least 1 character", "must not be empty")
    if kind == "literal_error":
        value = source.value(path)
        if isinstance(value, str) and (name := RENAMED_VALUES.get((_dotted(path), value))):
            return f'{text}; "{value}" is called "{name}" now'
    if kind in ("int_type", "float_type", "bool_type") and type(source.value(path)) is str:
        text += ", without quotation marks"
    return text + _as_written(source.value(path), quote=kind == "literal_error")


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


def _model_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Return the section at ``loc``, through optional fields and arrays of tables."""
    here: type[BaseModel] | None = model
    for part in (part for part in loc if isinstance(part, str)):
        if here is None:
            return None
        fields = {item.alias or name: item for name, item in here.model_fields.items()}
        here = section_in(fields[part].annotation) if part in fields else None
    return here


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section in a field's type, be it optional or an array; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            if (found := section_in(inner)) is not None:
                return found
    return None
