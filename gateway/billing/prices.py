# SPDX-License-Identifier: GPL-2.0-or-later
"""Prices: data files, and which of their entries is a model's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from gateway.billing.usage import MODALITIES, Usage
from gateway.config.source import ConfigError, MisplacedError, read_toml
from gateway.config.validate import Section, problems_of

OWN_FILE = Path(__file__).with_name("prices.toml")
MILLION = Decimal(1_000_000)


def _money(value: object) -> object:
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
        by_kind = any((self.text, self.audio, self.image))
        if sum((by_kind, bool(self.flat), bool(self.same_as))) > 1:
            raise ValueError("may have only one of text/audio/image, flat and same_as")
        if not (by_kind or self.flat or self.same_as or self.per_minute is not None):
            raise ValueError("has no price: text, audio, image, flat, per_minute or same_as")
        return self

    def fits(self, model: str, host: str) -> bool:
        """Whether it is the price of ``model`` at ``host``."""
        return _fits(self.match, model) and (not self.hosts or _fits(self.hosts, host))


class Uplift(Section):
    """One ``[[uplift]]``: the surcharge of a region."""

    hosts: Globs
    match: Globs
    factor: Annotated[Money, Field(gt=0)]


class PriceFile(Section):
    """A file of prices."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    model: tuple[ModelPrice, ...] = ()
    uplift: tuple[Uplift, ...] = ()

    @model_validator(mode="after")
    def _chains_end(self) -> Self:
        for index, entry in enumerate(self.model):
            if entry.same_as is not None and _fits(entry.match, entry.same_as):
                raise MisplacedError(("model", index, "same_as"), "names the entry itself")
        return self


def _fits(globs: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name.lower(), glob.lower()) for glob in globs)


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one model at one server. Nothing is rounded."""

    entry: ModelPrice
    factor: Decimal = Decimal(1)

    def of(self, usage: Usage) -> Decimal | None:
        """The cost; None when something was used that this entry has no price for.

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
    if entry.same_as is not None or entry.flat is not None:
        return True
    return entry.audio is not None and entry.audio.output is not None


class PriceBook:
    """Price files, the first of which that knows a model has the say."""

    def __init__(self, files: Iterable[PriceFile]) -> None:
        self._files = tuple(files)
        self.currency = self._files[0].currency if self._files else "USD"

    def price(self, model: str, host: str = "") -> Price | None:
        """The price of ``model`` at ``host``; None when no file knows it.

        An entry that names its hosts goes before one that does not.
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

    def speech_models(self) -> list[str]:
        """Return the names (with ``*`` and ``?``) of the models that speak."""
        entries = [entry for file in self._files for entry in file.model]
        return [name for entry in entries if _speaks(entry) for name in entry.match]

    def _entry(self, model: str, host: str) -> ModelPrice | None:
        for file in self._files:
            fitting = [entry for entry in file.model if entry.fits(model, host)]
            fitting.sort(key=lambda entry: not entry.hosts)
            if fitting:
                return fitting[0]
        return None


def load_prices(file: Path | None = None) -> PriceBook:
    """The gateway's own prices, behind those of ``file``. Raises ConfigError."""
    files = [OWN_FILE] if file is None else [file, OWN_FILE]
    read = [_read(one) for one in files]
    if len({one.currency for one in read}) > 1:
        own = read[1]
        # Sums of two currencies mean nothing: a file in another one stands alone.
        read = [one for one in read if one is not own]
    return PriceBook(read)


def _read(file: Path) -> PriceFile:
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
