# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools in Python: what the model is told of them, how they run, and what a bad module says."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.call.tools.commands import (
    CallCommand,
    CommandsFromTools,
    EndCall,
    Say,
    SendMessage,
    TransferTo,
)
from gateway.config import ConfigError
from gateway.planning.check import check, load_all
from gateway.planning.route_tools import function_plans, tool_executor
from gateway.tools import ToolCall
from gateway.tools import python as python_tools
from gateway.tools.python import Threads

CONFIG = """
[realtime]
url = "ws://127.0.0.1:8765"
[dialplan]
folder = "routes"
[tools]
module = "hotel.py"
timeout = 20
threads = 2
"""
ROUTE = """
[[route]]
name = "r"
tools = ["*"]
"""
HOTEL = '''
import asyncio
import functools
import threading
import time
from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gateway.tools import Call, ToolError, tool

STARTED = threading.Semaphore(0)
GO_ON = threading.Event()


class Untold(ToolError):
    def __str__(self):
        raise ValueError("no words")


class Guest(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0)]


@tool(timeout=2, filler_delay=1.0, filler_text="One moment.")
async def room_price(
    call: Call,
    kind: Literal["single", "double"],
    arrival: date,
    nights: Annotated[int, Field(ge=1, le=30)] = 1,
) -> dict[str, object]:
    """The price of a room.

    Args:
        kind: Which room.
        arrival: First day,
            in the hotel's time zone.

    Returns:
        euros
    """
    told = {"caller": call.caller, "var": call.variables["x"]}
    return {"euros": 80 * nights, "from": arrival, **told}


@tool
def guests(guests: list[Guest]) -> str:
    """Count guests."""
    return f"{len(guests)} of {type(guests[0]).__name__} in {threading.current_thread().name}"


@tool(name="book-it", description="Books.")
def book() -> None:
    raise RuntimeError("password=s3cret")


@tool
def full() -> None:
    """Says no."""
    raise ToolError("there is no room")


@tool
async def slow() -> None:
    """Takes long."""
    await asyncio.sleep(60)


@tool
def blocks() -> str:
    """Blocks."""
    STARTED.release()
    GO_ON.wait(10)
    return "went on"


@tool
def odd() -> object:
    """Returns what is no JSON."""
    return threading.Lock()


def logged(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


@tool
@logged
async def decorated(x: int) -> int:
    """A coroutine function behind a decorator."""
    return x + 1


@tool
def acts(call: Call) -> str:
    """Does all that there is."""
    call.say("Hello.")
    call.send_message("A guest.")
    call.transfer("desk", "Sorry.")
    call.end("Bye.")
    return "done"


ENDS = [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), BaseException(), Untold()]
RESULTS = {
    "endless": lambda: iter(int, 1),
    "large": lambda: [0] * 10_000,
    "circle": lambda: (circle := [], circle.append(circle), circle)[-1],
    "deep": lambda: functools.reduce(lambda inner, _: [inner], range(100_000), 1),
    "half": lambda: "a\\ud800b",
    "few": lambda: (number for number in range(3)),
    "none": lambda: iter(()),
    "keys": lambda: {(1, 2): 3},
}


@tool
async def ends(kind: int) -> None:
    """Ends as no function should."""
    raise ENDS[kind]


@tool
def ends_its_thread(kind: int) -> None:
    """The same in a thread."""
    raise ENDS[kind]


@tool
def gives(what: str) -> object:
    """Results of every kind."""
    return RESULTS[what]()


def helper(unknown):
    """Is no tool: others are marked."""
'''


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What one test imports is not there for the next."""
    before, path = set(sys.modules), list(sys.path)
    yield
    python_tools._loaded.clear()
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if "hotel" in name:
            del sys.modules[name]


def folder_with(folder: Path, code: str, config: str = CONFIG) -> Path:
    """A configuration with this module; returns its path."""
    (folder / "routes").mkdir()
    (folder / "routes" / "r.toml").write_text(ROUTE)
    (folder / "hotel.py").write_text(code)
    (folder / "gateway.toml").write_text(config)
    return folder / "gateway.toml"


def use(folder: Path, *calls: tuple[str, str], acts: list[CallCommand] | None = None) -> list[str]:
    """What the model gets from these calls, made together."""

    async def main() -> list[str]:
        box = tool_executor(*load_all(folder_with(folder, HOTEL), {}))
        loop = asyncio.get_running_loop()
        results: list[asyncio.Future[str]] = []
        for name, arguments in calls:
            result: asyncio.Future[str] = loop.create_future()
            results.append(result)
            call = ToolCall(
                "c1",
                name,
                arguments,
                "call-1",
                "r",
                "sip:alice@x",
                variables={"x": "y"},
                control=CommandsFromTools((acts if acts is not None else []).append),
            )
            box.run(call, result.set_result)
        try:
            return await asyncio.gather(*results)
        finally:
            await box.stop()

    return asyncio.run(main())


def test_what_the_model_is_told(tmp_path: Path) -> None:
    async def main() -> list[dict[str, Any]]:
        box = tool_executor(*load_all(folder_with(tmp_path, HOTEL), {}))
        plans = function_plans(box.of("r"))
        assert (plans["room_price"].timeout, plans["room_price"].filler_text) == (
            3.0,
            "One moment.",
        )
        assert plans["guests"].timeout == 21.0
        await box.stop()
        return box.definitions("r")

    told = {one["name"]: one for one in asyncio.run(main())}
    assert told.keys() == {
        "room_price",
        "guests",
        "book-it",
        "full",
        "slow",
        "blocks",
        "odd",
        "decorated",
        "acts",
        "ends",
        "ends_its_thread",
        "gives",
    }
    assert told["room_price"] == {
        "type": "function",
        "name": "room_price",
        "description": "The price of a room.",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {
                    "type": "string",
                    "enum": ["single", "double"],
                    "description": "Which room.",
                },
                "arrival": {
                    "type": "string",
                    "format": "date",
                    "description": "First day, in the hotel's time zone.",
                },
                "nights": {"type": "integer", "minimum": 1, "maximum": 30, "default": 1},
            },
            "required": ["kind", "arrival"],
            "additionalProperties": False,
        },
    }
    assert told["acts"]["parameters"]["properties"] == {}
    assert told["book-it"]["description"] == "Books."


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        (
            "room_price",
            '{"kind": "double", "arrival": "2026-11-20", "nights": 2}',
            '{"euros":160,"from":"2026-11-20","caller":"sip:alice@x","var":"y"}',
        ),
        ("room_price", '{"kind": "twin"}', "'twin' is not one of ['single', 'double']"),
        ("room_price", '{"kind": "single", "arrival": "soon"}', "arrival: Input should be"),
        ("room_price", "{", "must be one JSON object"),
        ("guests", '{"guests": [{"name": "Ann", "age": 3}]}', "1 of Guest in tool"),
        ("guests", '{"guests": [{"name": "Ann", "age": -3}]}', "guests.0.age"),
        ("book-it", "{}", '{"error": "the function failed (RuntimeError)"}'),
        ("decorated", '{"x": 1}', "2"),
        ("full", "{}", '{"error": "there is no room"}'),
        ("odd", "{}", "the function failed (ValueError)"),
        ("none", "{}", "not available now"),
    ],
)
def test_what_comes_of_a_call(tmp_path: Path, name: str, arguments: str, result: str) -> None:
    (said,) = use(tmp_path, (name, arguments))
    assert result in said


def _drop(*_line: object) -> dict[str, object]:
    """As log: the default one shows all variables of each of a thousand frames."""
    raise structlog.DropEvent


def test_whatever_a_function_raises_its_call_is_answered(tmp_path: Path) -> None:
    names = ["ends"] * 5 + ["ends_its_thread"] * 5
    said = use(tmp_path, *((name, f'{{"kind": {at % 5}}}') for at, name in enumerate(names)))
    assert all(one.startswith('{"error": "the function failed') for one in said)


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("few", "[0,1,2]"),
        ("none", "[]"),
        ("half", "a\ufffdb"),
        *[(what, "the function failed (ValueError)") for what in ("circle", "deep", "keys")],
        *[(what, "[cut: only the first 8000 characters") for what in ("endless", "large")],
    ],
)
def test_a_result_is_text_of_bounded_length(
    tmp_path: Path, what: str, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_tools, "log", structlog.wrap_logger(None, [_drop]))
    (said,) = use(tmp_path, ("gives", f'{{"what": "{what}"}}'))
    assert result in said
    assert len(said) < 8100


def test_a_failure_is_logged_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = structlog.testing.CapturingLogger()
    # Not rich's traceback, which breaks a path wherever its box ends.
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    plain = structlog.wrap_logger(printed, processors=[renderer])
    monkeypatch.setattr(python_tools, "log", plain)
    use(tmp_path, ("book-it", "{}"))
    logged = "".join(str(call.args) for call in printed.calls)
    assert "tool.failed" in logged
    assert "hotel.py" in logged


def test_acts_are_done_in_order_whatever_thread_they_come_from(tmp_path: Path) -> None:
    done: list[CallCommand] = []
    assert use(tmp_path, ("acts", "{}"), acts=done) == ["done"]
    transfer = TransferTo("desk", "Sorry.")
    assert done == [Say("Hello."), SendMessage("A guest."), transfer, EndCall("Bye.")]


def test_threads_are_bounded_and_the_rest_waits(tmp_path: Path) -> None:
    async def main() -> list[str]:
        before = set(threading.enumerate())  # that of an earlier test may not have ended yet
        box = tool_executor(*load_all(folder_with(tmp_path, HOTEL), {}))
        hotel: Any = sys.modules["gateway_tools_hotel"]
        loop = asyncio.get_running_loop()
        results: list[asyncio.Future[str]] = [loop.create_future() for _ in range(3)]
        for result in results:
            call = ToolCall("c", "blocks", "{}", "call-1", "r")
            box.run(call, result.set_result)
        for _ in range(2):
            assert await asyncio.to_thread(hotel.STARTED.acquire, timeout=20)
        assert not hotel.STARTED.acquire(blocking=False), "the third one waits"
        begun = set(threading.enumerate()) - before
        assert sum(thread.name == "tool" for thread in begun) == 2
        hotel.GO_ON.set()
        try:
            return await asyncio.gather(*results)
        finally:
            await box.stop()

    assert asyncio.run(main()) == ["went on"] * 3


def test_a_thread_that_cannot_be_started_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> str:
        threads = Threads(1)
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", no_memory)
            with pytest.raises(RuntimeError):
                await threads.run(lambda: "")
        assert threads.running == 0
        async with asyncio.timeout(20):
            return str(await threads.run(lambda: "went on"))

    assert asyncio.run(main()) == "went on"


def test_a_coroutine_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    code = HOTEL.replace("@tool\nasync def slow", "@tool(timeout=0.1)\nasync def slow")

    async def main() -> str:
        box = tool_executor(*load_all(folder_with(tmp_path, code), {}))
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        box.run(ToolCall("c", "slow", "{}", "call-1", "r"), result.set_result)
        said = await result
        await box.stop()
        return said

    assert json.loads(asyncio.run(main())) == {"error": "no result within 0.1 s"}


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("import os\nx = 1 +\n", 2, "invalid syntax"),
        ("x = 1\n\nraise ValueError('no database')\n", 3, "ValueError: no database"),
        ("def f():\n    import nothing_of_that_name\n\nf()\n", 2, "nothing_of_that_name"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ('def f(x):\n    """Doc."""\n', 1, "f: x: has no type"),
        ('def f(*x: int):\n    """Doc."""\n', 1, "named parameters only"),
        ('def f(x: "Nothing"):\n    """Doc."""\n', 1, "its types cannot be read"),
        ('def f(x: object.__class__):\n    """Doc."""\n', 1, "f: "),
        ('def hold(x: int):\n    """Doc."""\n', 1, "built-in tool"),
        ("from gateway.tools import tool\n\n@tool\ndef f():\n    pass\n", 3, "has no docstring"),
    ],
)
def test_a_module_that_cannot_be_used(tmp_path: Path, code: str, line: int, words: str) -> None:
    status, told = check(folder_with(tmp_path, code), {})
    assert status == 2
    assert any(f"hotel.py:{line}: " in one and words in one for one in told), told


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    config = CONFIG.replace("hotel.py", "no_such_module")
    with pytest.raises(ConfigError, match=r"gateway.toml:7: tools.module: there is no module"):
        load_all(folder_with(tmp_path, "", config), {})


def test_a_module_whose_functions_have_no_docstring(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hotel.py has no function with a docstring"):
        load_all(folder_with(tmp_path, "def f(x: int) -> int:\n    return x\n"), {})


def test_a_module_below_a_home_that_nobody_has(tmp_path: Path) -> None:
    config = CONFIG.replace("hotel.py", "~no-such-user/hotel.py")
    with pytest.raises(ConfigError, match=r"gateway.toml:7: tools.module: .* no such home folder"):
        load_all(folder_with(tmp_path, "", config), {})


def test_a_module_by_name_that_lacks_another(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "", CONFIG.replace("hotel.py", "hotel_that_lacks"))
    (tmp_path / "hotel_that_lacks.py").write_text("\nimport no_such_package\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"hotel_that_lacks.py:2: ModuleNotFoundError"):
        load_all(folder, {})


def test_a_module_by_name_with_plain_functions(tmp_path: Path) -> None:
    code = '''
from json import dumps

def open_now(day: str = "today") -> bool:
    """Whether it is open."""
    return day == "today"

def _hidden(x: int) -> int:
    """No tool."""
    return x

def undocumented(x: int) -> int:
    return x
'''
    config = CONFIG.replace("hotel.py", "hotel")

    async def main() -> list[str]:
        box = tool_executor(*load_all(folder_with(tmp_path, code, config), {}))
        await box.stop()
        return list(box.of("r"))

    assert asyncio.run(main()) == ["open_now"]


def test_what_a_coroutine_tells_comes_before_its_result(tmp_path: Path) -> None:
    code = '''
from gateway.tools import Call

async def tells(call: Call) -> str:
    """Tells something, and is done at once."""
    call.send_message("A guest.")
    return "done"
'''
    order: list[object] = []

    async def main() -> None:
        box = tool_executor(*load_all(folder_with(tmp_path, code), {}))
        over = asyncio.Event()

        def done(text: str) -> None:
            order.append(text)
            over.set()

        box.run(
            ToolCall(
                "c1",
                "tells",
                "{}",
                "call-1",
                "r",
                "sip:a@x",
                control=CommandsFromTools(order.append),
            ),
            done,
        )
        await over.wait()
        await box.stop()

    asyncio.run(main())
    assert order == [SendMessage("A guest."), "done"]
