# SPDX-License-Identifier: GPL-2.0-or-later
"""Usage that servers report (tokens, seconds), and its prices from data files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from gateway.config.source import ConfigError, MisplacedError, Section, problems_of, read_toml

MODALITIES = ("text", "audio", "image")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts by modality."""

    text: int = 0
    audio: int = 0
    image: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.text + other.text, self.audio + other.audio, self.image + other.image)

    @property
    def total(self) -> int:
        """Sum over the modalities."""
        return self.text + self.audio + self.image

    def as_json(self) -> dict[str, int]:
        return {"text": self.text, "audio": self.audio, "image": self.image}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, or seconds, of one or several responses; ``cached`` is part of ``input``."""

    input: Tokens = field(default_factory=Tokens)
    cached: Tokens = field(default_factory=Tokens)
    output: Tokens = field(default_factory=Tokens)
    seconds: float = 0.0
    """Duration of audio, where transcription is billed by it."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.cached + other.cached,
            self.output + other.output,
            self.seconds + other.seconds,
        )

    @property
    def total(self) -> int:
        """Number of tokens, input and output."""
        return self.input.total + self.output.total

    def as_json(self) -> dict[str, Any]:
        """The counts by direction and modality."""
        return {
            "input": self.input.as_json(),
            "cached": self.cached.as_json(),
            "output": self.output.as_json(),
        }


def usage_of(raw: Mapping[str, Any]) -> Usage:
    """Read the ``usage`` object of ``response.done``, or of a transcription, in GA's fields or
    Beta's; what is missing or malformed counts as 0.

    Of the type ``duration`` it has seconds only. Without details, all tokens are taken for audio,
    the dearest; what the details leave over is taken for text. Cached tokens without details of
    their own are text first, which stands first in a conversation, then audio, then images.
    """
    if raw.get("type") == "duration":
        return Usage(seconds=_seconds(raw.get("seconds")))
    read = _table(raw.get("input_token_details"))
    taken = _tokens(read, _count(raw.get("input_tokens")))
    cached = _cached(read, taken)
    output = _tokens(_table(raw.get("output_token_details")), _count(raw.get("output_tokens")))
    return Usage(taken, cached, output)


def backend_usage_of(raw: Mapping[str, Any]) -> Usage:
    """Read the ``usage`` object of a Live session's backend model, or another one that is all
    text."""
    taken = _count(raw.get("input_tokens"))
    cached = _count(_table(raw.get("input_tokens_details")).get("cached_tokens"))
    output = Tokens(text=_count(raw.get("output_tokens")))
    return Usage(Tokens(text=taken), Tokens(text=min(cached, taken)), output)


def transcription_usage_of(raw: Mapping[str, Any]) -> Usage:
    """Read the ``usage`` object of a transcription, whose output is text."""
    usage = usage_of(raw)
    return Usage(usage.input, usage.cached, Tokens(text=usage.output.total), usage.seconds)


def _tokens(details: Mapping[str, Any], total: int) -> Tokens:
    """Return tokens by modality; see :func:`usage_of` for those that the details leave over."""
    found = Tokens(*(_count(details.get(f"{name}_tokens")) for name in MODALITIES))
    over = max(0, total - found.total)
    if not over:
        return found
    return found + (Tokens(text=over) if found.total else Tokens(audio=over))


def _cached(details: Mapping[str, Any], taken: Tokens) -> Tokens:
    """Return the cached tokens by modality, at most ``taken``, the input tokens."""
    left = _count(details.get("cached_tokens"))
    inner = _table(details.get("cached_tokens_details"))
    if inner:
        return Tokens(
            *(min(_count(inner.get(f"{name}_tokens")), getattr(taken, name)) for name in MODALITIES)
        )
    counts = []
    for name in MODALITIES:
        counts.append(min(left, getattr(taken, name)))
        left -= counts[-1]
    return Tokens(*counts)


def _table(value: Any) -> Mapping[str, Any]:
    """Return a JSON object; an empty one in place of another value."""
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    """Return a number of tokens as int, at least 0; 0 for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return max(0, int(value)) if value == value and abs(value) < 1e15 else 0


def _seconds(value: Any) -> float:
    """Return a duration in seconds; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < 1e9 else 0.0


OWN_FILE = Path(__file__).with_name("prices.toml")
MILLION = Decimal(1_000_000)


def _money(value: object) -> object:
    """Return a price as text, so that a Decimal of it is as it was written. Raises ValueError for
    no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError("must be a number")
    return str(value)  # 0.017 is meant as it is written


Money = Annotated[Decimal, BeforeValidator(_money), Field(ge=0, lt=1_000_000)]
Globs = Annotated[tuple[str, ...], Field(min_length=1)]


class Rate(Section):
    """Prices for a million tokens; None where the provider has none."""

    input: Money | None = None
    cached: Money | None = None
    output: Money | None = None


class ModelPrice(Section):
    """One ``[[model]]`` of a price file."""

    match: Globs
    hosts: tuple[str, ...] = ()
    text: Rate | None = None
    audio: Rate | None = None
    image: Rate | None = None
    flat: Rate | None = None
    per_minute: Money | None = None
    same_as: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        """Refuse a price of no kind, or of several."""
        by_kind = any((self.text, self.audio, self.image))
        if sum((by_kind, bool(self.flat), bool(self.same_as))) > 1:
            raise ValueError("may have only one of text/audio/image, flat and same_as")
        if not (by_kind or self.flat or self.same_as or self.per_minute is not None):
            raise ValueError("has no price: text, audio, image, flat, per_minute or same_as")
        return self

    def fits(self, model: str, host: str) -> bool:
        """Return whether this price is for ``model`` at the server ``host``."""
        return _fits(self.match, model) and (not self.hosts or _fits(self.hosts, host))


class Uplift(Section):
    """One ``[[uplift]]``: the surcharge of a region."""

    hosts: Globs
    match: Globs
    factor: Annotated[Money, Field(gt=0)]


class Retirement(Section):
    """One ``[[retirement]]``: the day ``on`` which a server drops a model; None: not known."""

    match: Globs
    hosts: Globs
    on: date | None = None
    replacement: str = ""


class PriceFile(Section):
    """A file of prices, and of the models that end."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    model: tuple[ModelPrice, ...] = ()
    uplift: tuple[Uplift, ...] = ()
    retirement: tuple[Retirement, ...] = ()

    @model_validator(mode="after")
    def _chains_end(self) -> Self:
        """Refuse an entry that has its own model's price by ``same_as``."""
        for index, entry in enumerate(self.model):
            if entry.same_as is not None and _fits(entry.match, entry.same_as):
                raise MisplacedError(("model", index, "same_as"), "names the entry itself")
        return self


def _fits(globs: Iterable[str], name: str) -> bool:
    """Return whether a name matches one of the patterns (``*``, ``?``), whatever their case."""
    return any(fnmatchcase(name.lower(), glob.lower()) for glob in globs)


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one model at one server. Nothing is rounded."""

    entry: ModelPrice
    factor: Decimal = Decimal(1)

    def of(self, usage: Usage) -> Decimal | None:
        """Return the cost of ``usage``; None if part of it has no price in this entry.

        Σ over modalities of (input - cached)·input price + cached·cached price + output·output
        price, by the million, and the region's factor.
        """
        total = Decimal(0)
        for name in MODALITIES:
            rate = self.entry.flat or getattr(self.entry, name) or Rate()
            cached = getattr(usage.cached, name)
            parts = (
                (getattr(usage.input, name) - cached, rate.input),
                (cached, rate.input if rate.cached is None else rate.cached),
                (getattr(usage.output, name), rate.output),
            )
            for tokens, price in parts:
                if tokens and price is None:
                    return None
                total += tokens * (price or 0) / MILLION
        if usage.seconds:
            if self.entry.per_minute is None:
                return None
            total += Decimal(str(usage.seconds)) * self.entry.per_minute / 60
        return total * self.factor


def _speaks(entry: ModelPrice) -> bool:
    """Return whether an entry is, or may be, of a model that gives audio: it has a price for it, or
    one for all kinds, or another model's."""
    if entry.same_as is not None or entry.flat is not None:
        return True
    return entry.audio is not None and entry.audio.output is not None


class PriceBook:
    """Prices from several files; the first file that has a model decides.

    Args:
        files: whose prices count.
        retirements: of all files, in the same order.
    """

    def __init__(self, files: Iterable[PriceFile], retirements: Iterable[Retirement] = ()) -> None:
        self._files = tuple(files)
        self._retirements = tuple(retirements)
        self.currency = self._files[0].currency if self._files else "USD"

    def price(self, model: str, host: str = "") -> Price | None:
        """Return the price of ``model`` at ``host``, with the region's factor; None if no file has
        it.

        In the first file that has the model, an entry that names its hosts goes before one that
        does not. ``same_as`` is followed through all files; None if it comes back to the same
        model. The factor is of the first file that has one.
        """
        entry = self._entry(model, host)
        seen = {model}
        while entry is not None and entry.same_as is not None:
            if entry.same_as in seen:
                return None
            seen.add(entry.same_as)
            model = entry.same_as
            entry = self._entry(model, host)
        if entry is None:
            return None
        factor = Decimal(1)
        for file in self._files:
            uplift = next(
                (up for up in file.uplift if _fits(up.hosts, host) and _fits(up.match, model)), None
            )
            if uplift is not None:
                factor = uplift.factor
                break
        return Price(entry, factor)

    def retirement(self, model: str, host: str) -> Retirement | None:
        """Return the retirement of a model at ``host``, by the first entry that fits; None if none
        does, or its day is not known.

        ``model`` may be ``prompt:`` and the id of a hosted prompt.
        """
        for one in self._retirements:
            if _fits(one.match, model) and _fits(one.hosts, host):
                return one if one.on is not None else None
        return None

    def speech_models(self, host: str) -> list[str]:
        """Return patterns (``*``, ``?``) of the models at ``host`` that give audio."""
        entries = [entry for file in self._files for entry in file.model]
        here = [one for one in entries if not one.hosts or _fits(one.hosts, host)]
        return [name for entry in here if _speaks(entry) for name in entry.match]

    def _entry(self, model: str, host: str) -> ModelPrice | None:
        """Return the entry for a model of the first file that has one, one that names the host
        before others; None without any."""
        for file in self._files:
            fitting = [entry for entry in file.model if entry.fits(model, host)]
            fitting.sort(key=lambda entry: not entry.hosts)
            if fitting:
                return fitting[0]
        return None


def load_prices(file: Path | None = None) -> PriceBook:
    """Read the prices of ``file``, and behind them the gateway's own, unless these are in another
    currency; retirements of both. Raises ConfigError."""
    read = [own_prices()] if file is None else [_read(file), own_prices()]
    retirements = [one for each in read for one in each.retirement]
    if len({one.currency for one in read}) > 1:
        # Sums of two currencies mean nothing: a file in another one stands alone.
        read = read[:1]
    return PriceBook(read, retirements)


@cache
def own_prices() -> PriceFile:
    """Return the prices that the gateway ships, read once in a process."""
    return _read(OWN_FILE)


def _read(file: Path) -> PriceFile:
    """Read a price file. Raises ConfigError."""
    source = read_toml(file, {})
    problems = list(source.problems)
    try:
        data: dict[str, Any] = source.data
        prices = PriceFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError([*problems, *problems_of(error, PriceFile, source)]) from None
    if problems:
        raise ConfigError(problems)
    return prices
