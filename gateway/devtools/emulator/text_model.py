# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's text model: OpenAI's chat completions and responses with scripted replies.

It keeps nothing: the reply to a request is that of ``text_replies`` behind as many as the request
has messages of the assistant; one that asks for JSON gets ``text_scores`` for the criteria that its
instructions name. So any number of calls can be served at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateway.devtools.emulator.objects import new_id
from gateway.devtools.emulator.script import Script

MAX_BODY = 4 * 1024 * 1024
REQUEST_SECONDS = 10.0

DEFAULT_REPLIES = (
    "Good day. I would like to ask something, please.",
    "Thank you, that is all. Goodbye. [DONE]",
)
DEFAULT_SCORE = 8.0


class _BadRequestError(Exception):
    """What came is no request that is served; the status and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TextModel:
    """Serves ``/v1/chat/completions`` and ``/v1/responses`` over HTTP, without streaming.

    Args:
        script: asked for with each request, as a test may change it.
    """

    def __init__(self, script: Callable[[], Script]) -> None:
        self.requests = 0
        self._script = script
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                try:
                    status, told = 200, self._answer(*await _request(reader))
                except _BadRequestError as error:
                    status = error.status
                    told = {"error": {"message": str(error), "type": "invalid_request_error"}}
                body = json.dumps(told).encode()
                head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
                head += "Content-Type: application/json\r\nConnection: close\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        self.requests += 1
        chat = path == "/v1/chat/completions"
        if not chat and path != "/v1/responses":
            raise _BadRequestError(404, "there are /v1/chat/completions and /v1/responses")
        messages = asked.get("messages" if chat else "input")
        if not isinstance(messages, list) or not asked.get("model"):
            raise _BadRequestError(400, "model and messages are required")
        texts = [(str(one.get("role")), str(one.get("content"))) for one in messages]
        form = asked.get("response_format") if chat else (asked.get("text") or {}).get("format")
        text = self._scores(texts) if form else self._reply(texts)
        sent, made = sum(len(one) for _, one in texts) // 4, max(1, len(text) // 4)
        model = str(asked["model"])
        return (_completion if chat else _response)(model, text, sent, made)

    def _reply(self, messages: list[tuple[str, str]]) -> str:
        replies = self._script().text_replies or list(DEFAULT_REPLIES)
        said = sum(role == "assistant" for role, _ in messages)
        return replies[min(said, len(replies) - 1)]

    def _scores(self, messages: list[tuple[str, str]]) -> str:
        given = self._script().text_scores
        system = next((text for role, text in messages if role in ("system", "developer")), "")
        criteria: Any = {}
        with contextlib.suppress(ValueError):
            criteria = json.loads(system.rpartition("\n")[2])
        marks = {
            str(name): {"score": given.get(str(name), DEFAULT_SCORE), "reason": "by the script"}
            for name in (criteria if isinstance(criteria, dict) else ())
        }
        return json.dumps(marks)


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, _, rest = line.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    lengths = [one.partition(":")[2] for one in fields if one.lower().startswith("content-length:")]
    if method != "POST" or len(lengths) != 1 or not lengths[0].strip().isdigit():
        raise _BadRequestError(400, "a POST with Content-Length is wanted")
    if int(lengths[0]) > MAX_BODY:
        raise _BadRequestError(413, "the body is too long")
    try:
        body = json.loads(await reader.readexactly(int(lengths[0])))
    except ValueError:
        raise _BadRequestError(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise _BadRequestError(400, "the body is no object")
    return path, body


def _completion(model: str, text: str, sent: int, made: int) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made},
    }


def _response(model: str, text: str, sent: int, made: int) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
        "output": [
            {
                "id": new_id("msg"),
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sent + made,
        },
    }
