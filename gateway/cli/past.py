# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of calls: past ones, reports, explanations, erasure; black boxes, their replay."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

import click

from gateway.cli import CONFIG, SOCKET, ask_gateway, examples, print_json
from gateway.text import printable

if TYPE_CHECKING:
    from gateway.bridge.replay import Replay
    from gateway.config.operations import RecordingSettings, RecordSettings
    from gateway.config.source import Section
    from gateway.records.database import Database
    from gateway.records.report import By

S = TypeVar("S", bound="Section")


def moment(text: str) -> datetime:
    """Return the time that ``text`` names: ISO 8601, in UTC without a zone, or an age as 12h.

    Raises click.BadParameter for what is neither.
    """
    for unit, seconds in (("min", 60), ("h", 3600), ("d", 86400)):
        number = text.removesuffix(unit)
        if number != text and number.isdigit():
            return datetime.now(UTC) - timedelta(seconds=int(number) * seconds)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no time like 2026-11-28T10:00 and no age like 12h"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def print_past(
    config: Path,
    since: str | None,
    until: str | None,
    fields: Mapping[str, Any],
    limit: int,
    form: str,
) -> None:
    """Print past calls, newest first, as ``form``: text, json, jsonl or csv.

    Args:
        since: as :func:`moment` reads it; None for all.
        fields: further fields of the database's ``Filter``.
        limit: number of calls; 0 for all.
    """
    from gateway.records.database import Filter
    from gateway.records.report import export_lines, row_json

    wanted = Filter(
        since=None if since is None else moment(since),
        until=None if until is None else moment(until),
        **fields,
    )
    with opened(config) as database:
        rows: Iterable[dict[str, Any]]
        if form in ("jsonl", "csv") and limit == 0:
            rows = database.each(wanted)
        else:
            rows = database.find(wanted, limit=limit or 1_000_000)
        if form == "json":
            print_json([row_json(row) for row in rows])
        elif form in ("jsonl", "csv"):
            for line in export_lines(rows, form):
                click.echo(line, nl=False)
        else:
            for row in rows:
                click.echo(printable(_line(row)))


def _line(row: Mapping[str, Any]) -> str:
    from gateway.records.report import ending_text

    began = row["invited_at"].strftime("%Y-%m-%d %H:%M:%S")
    numbers = f"{row['from_number'] or 'gateway'} -> {row['to_number']}"
    cost = "" if row["cost"] is None else f", {row['cost']:.4f} {row['currency']}"
    return f"{row['id']}  {began}  {numbers}, route {row['route'] or '-'}, {ending_text(row)}{cost}"


@contextlib.contextmanager
def opened(config: Path, *, read_only: bool = True) -> Iterator[Database]:
    """Open the database of calls; its errors end the command with status 1."""
    settings = records_of(config)
    url = settings.database_url
    if url is None:
        raise fail(
            f"{config}: neither records.folder nor records.database is set: no calls are kept"
        )
    from sqlalchemy.exc import SQLAlchemyError

    from gateway.records.database import Database

    database = Database(url, read_only=read_only)
    try:
        if not database.exists():
            raise fail("no call has been kept yet")
        yield database
    except SQLAlchemyError as error:
        text = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        raise fail(f"the database of calls cannot be read: {text}") from None
    finally:
        database.close()


def records_of(config: Path) -> RecordSettings:
    """Return ``[records]`` of a file; other sections may be invalid."""
    from gateway.config.operations import RecordSettings

    return _section_of(config, "records", RecordSettings)


def recording_of(config: Path) -> RecordingSettings:
    """Return ``[recording]`` of a file; other sections may be invalid."""
    from gateway.config.operations import RecordingSettings

    return _section_of(config, "recording", RecordingSettings)


def _section_of(config: Path, name: str, model: type[S]) -> S:
    """Return one section of a file; other sections may be invalid. Raises ClickException."""
    from pydantic import ValidationError

    from gateway.config.source import ConfigError, read_toml

    try:
        data = read_toml(config).data.get(name, {})
        folder = config.absolute().parent
        return model.model_validate(data, context={"folder": folder})
    except (ConfigError, ValidationError, OSError) as error:
        raise fail(f"{config}: [{name}]: {error}") from None


def fail(text: str) -> click.ClickException:
    """Return an error that ends the command with status 1."""
    return click.ClickException(printable(text))


@click.command(
    "report",
    epilog=examples(
        "gateway report --from 30d --by route",
        "gateway report --from 2026-11-01 --to 2026-12-01 --by day --format html > november.html",
    ),
)
@CONFIG
@click.option("--from", "since", default="30d", show_default=True, help="From a time, or an age.")
@click.option("--to", "until", help="To a time, or an age. Default: now.")
@click.option(
    "--by", type=click.Choice(["route", "trunk", "day", "ending"]), default="route",
    show_default=True, help="What a line is of.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "html", "json"]), default="table",
    show_default=True,
)  # fmt: skip
def report(config: Path, since: str, until: str | None, by: By, form: str) -> None:
    """Report on past calls: endings, dispositions, waits, cost, and the month's expected cost.

    Waits are those of callers for the agent (ms): p50 is the median of the calls' medians, p95 the
    95th percentile of their 95th percentiles. A day begins in cost.timezone.
    """
    from gateway.config.sections import CostSettings
    from gateway.records.database import Filter
    from gateway.records.report import csv_of, forecast_of, page_of, report_of, table_of

    name = _section_of(config, "cost", CostSettings).timezone
    zone = ZoneInfo(name) if name else None
    now = datetime.now(UTC).astimezone(zone)
    begin, end = moment(since), now if until is None else moment(until)
    with opened(config) as database:
        told = report_of(
            database.each(Filter(since=begin, until=end)),
            by,
            f"{begin.astimezone(zone):%Y-%m-%d %H:%M}",
            f"{end.astimezone(zone):%Y-%m-%d %H:%M}",
            zone,
        )
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        recent = Filter(since=min(month, now - timedelta(days=28)))
        told.forecast = forecast_of(database.each(recent), now.date(), zone)
    if form == "html":
        for line in page_of(told, now).splitlines():
            click.echo(printable(line))
    elif form == "json":
        print_json(told.as_json())
    elif form == "csv":
        for line in csv_of(told):
            click.echo(printable(line))
    else:
        for line in table_of(told):
            click.echo(printable(line))


@click.command("canary", epilog=examples("gateway canary sales", "gateway canary sales --stop"))
@click.argument("route")
@CONFIG
@click.option("--stop", "action", flag_value="stop", help="Give all callers the route's own.")
@click.option("--start", "action", flag_value="start", help="Start it; its figures begin anew.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def canary(route: str, config: Path, action: str | None, as_json: bool) -> None:
    """Compare the canary of ROUTE with the route's other calls, or stop or start it.

    Figures are those of calls that have ended since it began; waits are in ms. It stops by itself
    as route.canary.stop says. Exit 1 where the route has had none.
    """
    from gateway.api.client import NoAnswerError, RefusedError, ask, socket_of, sockets_at
    from gateway.records.database import Filter
    from gateway.records.report import CANARY, CONTROL, report_of, table_of

    if action is not None:
        try:
            ask(sockets_at(socket_of(config))[0], f"canary_{action}", route=route)
        except (NoAnswerError, RefusedError) as error:
            raise fail(str(error)) from None
    now = datetime.now(UTC)
    with opened(config) as database:
        state = database.canary(route)
        if state is None:
            raise fail(f"route {route!r} has had no canary")
        rows = database.each(Filter(since=state.began_at, route=route, ended=True))
        told = report_of(
            (row for row in rows if row["variant"] in (CANARY, CONTROL)),
            "variant",
            f"{state.began_at:%Y-%m-%d %H:%M}",
            f"{now:%Y-%m-%d %H:%M}",
            None,
        )
    if as_json:
        fields = {"stopped_by": state.stopped_by, "why": state.why}
        shown = {"route": route, **fields, **told.as_json()}
        print_json(shown)
        return
    why = f": {state.why}" if state.why else ""
    now_is = f"stopped by {state.stopped_by}{why}" if state.stopped_by else "running"
    click.echo(printable(f"{now_is}; calls since {told.since} UTC"))
    for line in table_of(told):
        click.echo(printable(line))


@click.command("explain", epilog=examples("gateway explain 7f3a"))
@click.argument("call")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print the row as one JSON object.")
def explain(call: str, config: Path, as_json: bool) -> None:
    """Explain why CALL was accepted or rejected, its route, and why it ended.

    CALL is an id, its beginning or its end, or a SIP Call-ID, of a call that is over or in
    progress; of the last INVITEs that were refused before any route, which have no record, a
    running gateway tells by their SIP Call-ID. Exit 1 where there is none.
    """
    from gateway.records.report import explanation_lines, row_json

    with opened(config) as database:
        row = database.get(call)
    if row is None and (told := _refused(config, call)):
        if as_json:
            print_json(told)
        else:
            click.echo(printable(told["explanation"]))
        return
    if row is None:
        raise fail(f"there is no call {call!r}, or several begin so")
    if as_json:
        told = {**row_json(row), "events": [row_json(one) for one in row["events"]]}
        print_json(told)
        return
    for line in explanation_lines(row):
        click.echo(printable(line))


def _refused(config: Path, call: str) -> dict[str, Any]:
    """Return what a running gateway says of a refused INVITE; empty where it knows none."""
    from gateway.api.client import NoAnswerError, RefusedError, ask, socket_of, sockets_at

    try:
        for one in sockets_at(socket_of(config)):
            with contextlib.suppress(NoAnswerError, RefusedError):
                return ask(one, "refused", call=call)
    except NoAnswerError:
        pass  # there is no socket to ask
    return {}


@click.command("erase", epilog=examples("gateway erase +49301234567"))
@click.argument("number")
@CONFIG
def erase(number: str, config: Path) -> None:
    """Erase NUMBER from the data of ended calls.

    Rows keep times and cost, with a keyed hash in place of the number; transcripts, files and
    events are deleted. Calls on legal hold stay as they are.
    """
    settings, recording = records_of(config), recording_of(config)
    with opened(config, read_only=False) as database:
        from gateway.records.retention import Storage
        from gateway.records.retention import erase as erase_number
        from gateway.records.spool import Spool

        assert settings.spool_folder is not None
        counts = erase_number(
            number,
            database,
            Spool(settings.spool_folder),
            settings.spool_folder,
            recording.folder,
            None if recording.upload is None else Storage.of(recording.upload),
        )
    click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))


@click.command("parked", epilog=examples("gateway parked", "gateway parked --resend all"))
@CONFIG
@click.option("--resend", metavar="CALL", help="Have those of a call written again; all: each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with what was to be written.")
def parked(config: Path, resend: str | None, as_json: bool) -> None:
    """List rows and events that the database refused, or have them written again.

    They wait in the folder of the records. What is written again is taken by the gateway that runs
    on that folder, or by the next one; what is refused again is parked again. Exit 1 where nothing
    of CALL is parked.
    """
    from gateway.records.spool import NAME, Spool

    folder = records_of(config).spool_folder
    if folder is None:
        raise fail(f"{config}: records.folder is not set: no calls are kept")
    spool = Spool(folder)
    try:
        found = spool.parked_entries() if (folder / NAME).exists() else []
        count = spool.unpark("*" if resend == "all" else resend) if found and resend else 0
    except (OSError, sqlite3.Error) as error:
        raise fail(f"{folder / NAME}: {error}") from None
    finally:
        spool.close()
    if resend is not None:
        if not count and resend != "all":
            raise fail(f"nothing of a call {resend!r} is parked")
        click.echo(f"to be written again: {count}")
    elif as_json:
        print_json([{**asdict(one), "error": why} for one, why in found])
    else:
        for one, why in found:
            at, first = datetime.fromtimestamp(one.at, UTC), why.partition("\n")[0]
            told = f"{one.call_id}  {at:%Y-%m-%d %H:%M:%S}  {one.kind}, {first}"
            click.echo(printable(told))
        if not found:
            click.echo("none")


@click.command(
    "blackbox",
    epilog=examples("gateway blackbox 7f3a -o incident.jsonl", "gateway blackbox 7f3a --keep"),
)
@click.argument("call")
@CONFIG
@SOCKET
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Copy it to this file."
)
@click.option("--keep", is_flag=True, help="Keep that of a call in progress, however it ends.")
def black_box(call: str, config: Path, path: Path | None, output: Path | None, keep: bool) -> None:
    """Print where the black box of CALL is, for gateway replay and gateway timeline.

    CALL is an id, its beginning or its end, or a SIP Call-ID. Exit 1 where none was kept: see
    records.black_box.
    """
    from gateway.records.black_boxes import SUFFIX
    from gateway.records.files import file_stem

    if keep:
        call = ask_gateway(config, path, "black_box", call=call)["call"]
        click.echo(f"the black box of {printable(call)} is kept when the call ends")
        return
    with opened(config) as database:
        row = database.get(call)
    if row is None:
        raise fail(f"there is no call {call!r}, or several begin so")
    folder = records_of(config).folder or Path()
    stem = file_stem(row["invited_at"].isoformat(timespec="milliseconds"), row["id"])
    found = folder / f"{stem}{SUFFIX}"
    if not found.exists():
        kept = records_of(config).black_box
        why = f'records.black_box is "{kept}"' + (
            ", or the route's is off" if kept != "off" else ""
        )
        raise fail(f"no black box of this call was kept ({found}): {why}")
    if output is not None:
        try:
            _copy(found, output)
        except OSError as error:
            raise fail(f"{output}: cannot be written: {error.strerror}") from None
    click.echo(str(output or found))


def _copy(black_box: Path, to: Path) -> None:
    from gateway.records.files import private

    with open(to, "wb", opener=private) as file:
        file.write(black_box.read_bytes())


@click.command(
    "replay",
    epilog=examples(
        "gateway replay incident.jsonl",
        "gateway replay incident.jsonl --as-test tests/incidents/test_no_answer.py",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--as-test",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="TEST.py",
    help="Write a test that holds the outcome, with what it needs of FILE beside it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as one JSON object.")
def replay(file: Path, as_test: Path | None, as_json: bool) -> None:
    """Feed the black box FILE to the call's state machine as it is in this version.

    Shows where the machine now does something else than it did in the call, with the minutes and
    seconds since the INVITE. Exit 1 where it does, 2 where FILE is no black box.
    """
    from gateway import __version__
    from gateway.bridge.replay import BlackBoxError, read_lines
    from gateway.bridge.replay import replay as replayed

    try:
        found = replayed(read_lines(file))
        written = [] if as_test is None else _write_test(found, file, as_test)
    except (OSError, BlackBoxError) as error:
        where = getattr(error, "filename", None) or file
        click.echo(printable(f"{where}: {getattr(error, 'strerror', None) or error}"), err=True)
        raise SystemExit(2) from None
    if as_json:
        told = {
            "call_id": found.record.call_id,
            "version": found.version,
            "steps": found.steps,
            "seconds": found.seconds,
            "differences": [asdict(one) for one in found.differences],
        }
        print_json(told)
        raise SystemExit(1 if found.differences else 0)
    for one in found.differences:
        for line in one.lines():
            click.echo(printable(line))
    if found.stopped:
        click.echo("there may be more: what follows a difference is seldom the same")
    for path in written:
        click.echo(f"written: {path}")
    count = len(found.differences)
    what = "no difference" if not count else f"{count} with differences"
    other = "" if found.version == __version__ else f" of version {printable(found.version)}"
    click.echo(
        f"call {printable(found.record.call_id)}{other}: {found.steps} steps in "
        f"{found.seconds:.1f} s, {what}"
    )
    raise SystemExit(1 if found.differences else 0)


_TEST = """\
# SPDX-License-Identifier: GPL-2.0-or-later
\"\"\"A call of {day} that ended by {by}: {why}.\"\"\"

from pathlib import Path

from gateway.bridge.replay import read_lines, replay

MARKS = {marks}
\"\"\"What the timeline of its record has.\"\"\"


def test_{name}() -> None:
    \"\"\"{steps} steps in {seconds:.0f} s on route {route}.\"\"\"
    found = replay(read_lines(Path(__file__).with_name({file})))
    assert ["\\n".join(one.lines()) for one in found.differences] == []
    assert [mark["event"] for mark in found.record.timeline] == MARKS
    ending = found.record.ending
    assert ending is not None
    assert (ending.by, ending.why, ending.sip_code) == {ending}
"""


def _write_test(found: Replay, file: Path, test: Path) -> list[Path]:
    """Write a test of a call and what it needs of its black box; returns both files.

    Raises OSError and BlackBoxError.
    """
    from gateway.bridge.replay import BlackBoxError, read_lines, shortened

    ending = found.record.ending
    if ending is None:
        raise BlackBoxError("the call has no end in it, and a test would hold nothing")
    if test.exists():
        raise FileExistsError(errno.EEXIST, "is there already", str(test))
    box = test.with_name(f"{test.stem.removeprefix('test_')}.blackbox.jsonl.gz")
    facts = (ending.by.value, ending.why.value, ending.sip_code)
    marks = "".join(f"    {json.dumps(mark['event'])},\n" for mark in found.record.timeline)
    route = re.sub(r"[^\w .-]", "_", found.record.route)
    text = _TEST.format(
        day=re.sub(r"[^\d-]", "", found.record.started_at[:10]) or "unknown date",
        by=facts[0],
        why=facts[1].replace("_", " "),
        marks=f"[\n{marks}]",
        name=re.sub(r"\W", "_", test.stem.removeprefix("test_")).lower() or "call",
        steps=found.steps,
        seconds=found.seconds,
        route=route or "unknown",
        file=json.dumps(box.name),
        ending=json.dumps(facts).replace("[", "(").replace("]", ")").replace("null", "None"),
    )
    # mtime=0: the same call makes the same file.
    test.parent.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress("".join(shortened(read_lines(file))).encode(), mtime=0)
    box.write_bytes(packed)
    test.write_text(text, encoding="utf-8")
    return [test, box]
