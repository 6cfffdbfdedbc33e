# SPDX-License-Identifier: GPL-2.0-or-later
"""An application of openai-agents that answers the calls of a route.

    pip install openai-agents fastapi uvicorn
    export GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_TOKEN=… WEBHOOK_SECRET=whsec_…
    uvicorn --app-dir dialplans/application agent_app:app --port 8000

It is written as for OpenAI's SIP interface; only the two addresses are the gateway's.
"""

from __future__ import annotations

import asyncio
import os

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.openai_realtime import OpenAIRealtimeSIPModel
from fastapi import FastAPI, Request, Response
from openai import AsyncOpenAI, InvalidWebhookSignatureError

GATEWAY = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
TOKEN = os.environ["GATEWAY_TOKEN"]
MODEL = os.environ.get("REALTIME_MODEL", "gpt-realtime-2.1")

client = AsyncOpenAI(
    base_url=f"{GATEWAY}/v1", api_key=TOKEN, webhook_secret=os.environ["WEBHOOK_SECRET"]
)
app = FastAPI()
calls: set[asyncio.Task[None]] = set()


@function_tool
def opening_hours(day: str) -> str:
    """When the shop is open.

    Args:
        day: Day of the week, in English.
    """
    return "closed" if day == "Sunday" else "9 to 18"


agent = RealtimeAgent(
    name="Shop",
    instructions="You work in a bicycle shop. Answer in one or two short sentences.",
    tools=[opening_hours],
)


@app.post("/webhook")
async def webhook(request: Request) -> Response:
    """Accept the call that the gateway tells of, and talk to it in the background."""
    try:
        event = client.webhooks.unwrap(await request.body(), dict(request.headers))
    except (InvalidWebhookSignatureError, ValueError):
        return Response(status_code=400)
    if event.type == "realtime.call.incoming":
        call_id = event.data.call_id
        await client.realtime.calls.accept(
            call_id, type="realtime", model=MODEL, instructions=str(agent.instructions)
        )
        talking = asyncio.create_task(talk(call_id))
        calls.add(talking)
        talking.add_done_callback(calls.discard)
    return Response(status_code=200)


async def talk(call_id: str) -> None:
    """Let the agent lead the call until it is over."""
    runner = RealtimeRunner(agent, model=OpenAIRealtimeSIPModel())
    url = f"{GATEWAY.replace('http', 'ws', 1)}/v1/realtime?call_id={call_id}"
    session = await runner.run(model_config={"api_key": TOKEN, "call_id": call_id, "url": url})
    async with session:
        await session.send_message("Greet the caller.")
        async for event in session:
            if event.type == "error":
                print(f"{call_id}: {event.error}")
