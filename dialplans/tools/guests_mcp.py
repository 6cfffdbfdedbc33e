"""A server of the Model Context Protocol on standard input and output: see docs/tools.md."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

server = MCPServer("guests")
rooms = {12: "Ann Example", 14: "Ben Example"}


@server.tool()
def find_guest(room: int) -> str:
    """Who stays in a room."""
    return rooms.get(room, "nobody")


@server.tool()
def check_out(room: int) -> str:
    """Check a guest out of their room."""
    return f"{rooms.pop(room, 'nobody')} has left"


if __name__ == "__main__":
    server.run()
