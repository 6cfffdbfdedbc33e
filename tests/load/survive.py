# SPDX-License-Identifier: GPL-2.0-or-later
"""What a gateway survives, at length: ``python -m tests.load.survive``, some minutes.

The tests of kills, of a database that is stopped, and of reload and drain, with more calls, kills
and seconds than in ``make test``.
"""

from __future__ import annotations

import os
import subprocess
import sys

import click

from .worker import ROOT

TESTS = {
    "records": "tests/calls/test_records.py::test_every_call_that_was_answered_to_has_one_row_after"
    "_kill_9",
    "webhooks": "tests/calls/test_webhooks.py::test_each_call_has_one_end_by_its_id_after_kill_9_at"
    "_random_moments",
    "database": "tests/calls/test_shared.py::test_a_database_that_is_stopped_costs_no_audio_and_no"
    "_row",
    "reload": "tests/calls/test_reload.py::test_reloads_and_a_drain_are_heard_by_nobody",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=click.Choice(list(TESTS)), multiple=True, help="Leave the rest out.")
@click.option("--kills", default=50, show_default=True, help="Of the process, with 20 calls each.")
@click.option("--calls", default=50, show_default=True, help="Beside a database or a reload.")
@click.option("--away", default=60.0, show_default=True, help="Seconds without the database.")
@click.option("--minutes", default=20.0, show_default=True, help="Most that one of them may take.")
def main(only: tuple[str, ...], kills: int, calls: int, away: float, minutes: float) -> None:
    """Run these tests at length, one after the other; exit 1 where one fails."""
    more = {
        "GATEWAY_TEST_KILLS": kills,
        "GATEWAY_TEST_CALLS": calls,
        "GATEWAY_TEST_AWAY_S": away,
        "GATEWAY_TEST_SECONDS": minutes * 60,
    }
    env = {**os.environ, **{name: str(value) for name, value in more.items()}}
    pytest = [sys.executable, "-m", "pytest", "-q", "--durations=0", f"--timeout={minutes * 60}"]
    chosen = [TESTS[name] for name in only or TESTS]
    raise SystemExit(subprocess.run([*pytest, *chosen], cwd=ROOT, env=env, check=False).returncode)


if __name__ == "__main__":
    main()
