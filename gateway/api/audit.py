# SPDX-License-Identifier: GPL-2.0-or-later
"""Carry out an operator's command, and log who gave it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

import structlog
from fastapi import HTTPException, Request

from gateway.api.backend import Backend, NoCallError, RefusedError
from gateway.api.tokens import Token

log = structlog.get_logger("api")


async def audited(
    backend: Backend, request: Request, token: Token, name: str, fields: dict[str, Any]
) -> Any:
    try:
        answer = await run(backend, name, fields)
    except HTTPException as error:
        audit(request, token, name, fields, str(error.status_code))
        raise
    audit(request, token, name, fields, "ok")
    return answer


def audit(
    request: Request, token: Token, name: str, fields: Mapping[str, Any], result: str
) -> None:
    log.info(
        "api.audit",
        who=token.name,
        role=token.role.name.lower(),
        action=name,
        call=fields.get("call", ""),
        result=result,
        peer=request.client.host if request.client else "local",
    )


async def run(backend: Backend, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Carry out a command. Raises HTTPException where it is refused."""
    try:
        answer = backend.commands[name](fields)
        if isinstance(answer, Awaitable):
            answer = await answer
    except NoCallError as error:
        raise no_call(str(fields.get("call", "")), str(error)) from None
    except RefusedError as error:
        raise HTTPException(409, {"code": "refused", "message": str(error)}) from None
    return dict(answer)


def no_call(call_id: str, text: str = "") -> HTTPException:
    message = text or f"there is no call {call_id!r}"
    return HTTPException(404, {"code": "call_not_found", "message": message})
