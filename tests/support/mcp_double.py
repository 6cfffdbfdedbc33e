# SPDX-License-Identifier: GPL-2.0-or-later
"""A server of the Model Context Protocol, made with the official package: on stdio or HTTP.

``python mcp_double.py`` speaks on standard input and output; ``python mcp_double.py 8123`` serves
``http://127.0.0.1:8123/mcp``, and wants a token if ``MCP_TOKEN`` is set.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("crm")


@server.tool()
def find_customer(number: str, exact: bool = False) -> str:
    """Find a customer by telephone number."""
    return f"Ann Example, {number}, {exact}"


@server.tool()
def numbers(count: int) -> list[int]:
    """Some numbers."""
    return list(range(count))


@server.tool()
def fails() -> str:
    """Always fails."""
    raise ValueError("no database")


@server.tool()
async def slow() -> str:
    """Takes long."""
    await asyncio.sleep(60)
    return "late"


@server.tool()
def die() -> str:
    """Ends the process."""
    os._exit(3)


@server.tool()
def environment(name: str) -> str:
    """A variable of the process's environment."""
    return os.environ.get(name, "not set")


@server.tool()
def trace(context: Context) -> str:
    """What came with the request besides its arguments."""
    return str(context.request_context.meta)


def http_app(token: str) -> Any:
    """The ASGI application; 401 without the token."""
    inner = server.streamable_http_app()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers") or [])
        if scope["type"] == "http" and token:
            given = headers.get(b"authorization", b"").decode()
            if given != f"Bearer {token}":
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"who are you"})
                return
        await inner(scope, receive, send)

    return app


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import uvicorn

        app = http_app(os.environ.get("MCP_TOKEN", ""))
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
    else:
        print("a line that is none of the protocol", file=sys.stderr)
        print("another one", flush=True)
        server.run()
