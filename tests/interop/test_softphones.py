# SPDX-License-Identifier: GPL-2.0-or-later
"""The softphones of README.md, called as it says, on a machine without an account for them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.lab.agent import Agent
from tests.interop.lab.ports import GATEWAY
from tests.interop.lab.snippets import README, blocks_of

pytestmark = pytest.mark.interop

NO_SOUND_CARD = "pcm.!default { type null }\nctl.!default { type null }\n"


@pytest.fixture(scope="module")
def agent(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    made = Agent(tmp_path_factory.mktemp("agent"), (f"udp:{GATEWAY}:0",))
    runner.run(made.start())
    yield made
    runner.run(made.stop())


async def typed_until_it_rings(process: asyncio.subprocess.Process, command: str) -> None:
    """Type the commands every second: Linphone shows its prompt before its transport is up."""
    assert process.stdin is not None
    while command:
        process.stdin.write(f"{command}\n".encode())
        await process.stdin.drain()
        await asyncio.sleep(1)


@pytest.mark.parametrize(("program", "block"), [("baresip", 0), ("linphonec", 1)])
async def test_a_call_from_nothing(agent: Agent, tmp_path: Path, program: str, block: int) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    recipe = blocks_of(README, "Start `make run` and wait")[block]
    assert program in recipe
    recipe = recipe.replace("127.0.0.1:5060", agent.address).replace("127.0.0.1", GATEWAY)
    typed = "\n".join(re.findall(r"^linphonec> (.*)", recipe, re.MULTILINE))
    recipe = re.sub(r"^linphonec> .*", "", recipe, flags=re.MULTILINE)
    # Its home is this folder; baresip would ask who is logged in.
    recipe = recipe.replace("baresip ", "baresip -f . ")
    (tmp_path / ".asoundrc").write_text(NO_SOUND_CARD)
    call = agent.next_call()
    process = await asyncio.create_subprocess_exec(
        # Linphone was once seen to take all of a machine's memory.
        *("sh", "-ec", f"ulimit -v 4000000; ({recipe.strip()}) >phone.log 2>&1"),
        stdin=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        start_new_session=True,
    )
    typing = asyncio.create_task(typed_until_it_rings(process, typed))
    try:
        await call.wait("call.confirmed")
    finally:
        typing.cancel()
        os.killpg(process.pid, 15)
        await process.wait()
