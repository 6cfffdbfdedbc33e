# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway blackbox`` and ``replay``: a call that went wrong, played again and made a test."""

from __future__ import annotations

import errno
import gzip
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import CONFIG, examples
from gateway.cli.live_calls import SOCKET, asked
from gateway.cli.past import fail, opened, records_of
from gateway.text import printable

if TYPE_CHECKING:
    from gateway.bridge.replay import Replay


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
        call = asked(config, path, "black_box", call=call)["call"]
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
    from gateway.bridge.black_box import BlackBoxError
    from gateway.bridge.replay import read_lines
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
            "call_id": found.call_id,
            "version": found.version,
            "steps": found.steps,
            "seconds": found.seconds,
            "differences": [asdict(one) for one in found.differences],
        }
        click.echo(printable(json.dumps(told, ensure_ascii=False)))
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
        f"call {printable(found.call_id)}{other}: {found.steps} steps in {found.seconds:.1f} s,"
        f" {what}"
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
    from gateway.bridge.black_box import BlackBoxError
    from gateway.bridge.replay import read_lines, shortened

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
