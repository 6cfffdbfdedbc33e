# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths about the process: its state, drain and reload, deliveries of webhooks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from gateway.api.backend import Backend
from gateway.api.calls import audit, run
from gateway.api.tokens import Token


def add_administration(app: FastAPI, backend: Backend, readonly: Any, admin: Any) -> None:
    """Add them, with the roles that may."""

    @app.get("/api/v1/status", dependencies=[readonly], tags=["gateway"])
    async def status() -> dict[str, Any]:
        """Trunks, calls, servers, refusals and costs of this process."""
        return await run(backend, "status", {})

    @app.get("/api/v1/trunks", dependencies=[readonly], tags=["gateway"])
    async def trunks() -> dict[str, Any]:
        """Each trunk with the state of its registration."""
        return {"trunks": (await run(backend, "status", {}))["trunks"]}

    @app.get("/api/v1/webhooks/deliveries", tags=["webhooks"])
    async def deliveries(dead: bool = False, token: Token = admin) -> Any:
        """Deliveries that wait, or those that were given up."""
        del token
        found = [] if backend.webhooks is None else await backend.webhooks.deliveries(dead=dead)
        return {"deliveries": [{**asdict(one), "body": json.loads(one.body)} for one in found]}

    @app.post("/api/v1/webhooks/deliveries/{delivery_id}/resend", tags=["webhooks"])
    async def resend(delivery_id: str, request: Request, token: Token = admin) -> Any:
        """Try deliveries that were given up anew; ``*`` for all of them."""
        count = 0 if backend.webhooks is None else await backend.webhooks.resend(delivery_id)
        audit(request, token, "resend", {}, str(count))
        if not count:
            message = f"no delivery {delivery_id!r} was given up"
            raise HTTPException(404, {"code": "delivery_not_found", "message": message})
        return {"resent": count}

    @app.post("/api/v1/drain", status_code=202, tags=["gateway"])
    async def drain(request: Request, token: Token = admin) -> Any:
        """Take no further calls, and end when those in progress are over."""
        audit(request, token, "drain", {}, "ok")
        backend.drain()
        return {"draining": True}

    @app.post("/api/v1/reload", tags=["gateway"])
    async def reload(request: Request, token: Token = admin) -> Any:
        """Read configuration, dialplans, prices and certificates anew."""
        if backend.reload is None:
            raise HTTPException(501, {"code": "not_here", "message": "nothing can be reloaded"})
        answer = await backend.reload()
        audit(request, token, "reload", {}, "ok" if answer.get("applied") else "kept")
        return JSONResponse(dict(answer), 200 if answer.get("applied") else 422)
