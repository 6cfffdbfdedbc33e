# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools of a route: what its session offers, a call's plans for them, and their executor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.audio.sounds import wav_seconds
from gateway.call.plan import (
    AnswerPlan,
    ApprovalRule,
    ContentPlan,
    ContextPlan,
    FallbackStep,
    FunctionPlan,
    GuardrailPlan,
    InterruptionPlan,
    MachineDetectionPlan,
    PostCallPlan,
    ResponseFailurePlan,
    UserIdlePlan,
)
from gateway.call.tools import definitions
from gateway.call.tools.commands import (
    BriefingPlan,
    CollectPlan,
    Destination,
    DispositionPlan,
    HoldPlan,
    InterpreterPlan,
    LanguagePlan,
    RecordingPlan,
    SchedulePlan,
    SendDtmfPlan,
    TransferPlan,
)
from gateway.call.tools.definitions import OWN
from gateway.config.sections import McpServerSettings, ToolSettings
from gateway.config.sip import TrunkSettings
from gateway.config.source import Problem, suggestion
from gateway.config.values import shown
from gateway.dialplan import Route
from gateway.dialplan.route_sections import Fallback
from gateway.dialplan.tool_sections import ARGUMENT, Transfer, WebTool
from gateway.dialplan.variables import names_in, render
from gateway.planning.sip import caller_id_of, dial_uri
from gateway.realtime.session_object import complete_detection
from gateway.text import words_of
from gateway.tools import Function, ToolError, Waiting, result_text
from gateway.tools.executor import RouteTools, ToolExecutor, ToolLimits
from gateway.tools.http import Operator, Webhook
from gateway.tools.mcp import McpSettings
from gateway.tools.python import PythonTool, ToolModuleError, python_tools
from gateway.tools.schema import parse_arguments

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from gateway.config import Config
    from gateway.config.source import Section
    from gateway.dialplan import Dialplan, Route


def tool_executor(config: Config, dialplan: Dialplan) -> ToolExecutor:
    """Return the executor of the functions of all routes. Raises ToolModuleError."""
    tools = config.tools
    limits = ToolLimits(
        threads=tools.threads,
        timeout=tools.timeout,
        max_result_chars=tools.max_result_chars,
        http_connections=tools.http_connections,
        http_proxy=tools.http_proxy,
        http_ca=tools.http_ca,
    )
    servers = [_mcp_settings(server, tools) for server in tools.mcp if server.client == "gateway"]
    return ToolExecutor(offers_of(config, dialplan), servers, limits)


def offers_of(config: Config, dialplan: Dialplan) -> dict[str, RouteTools]:
    """Return the functions and MCP servers of each route, by its name. Raises ToolModuleError."""
    python = module_tools(config.tools)
    return {route.name: _offer(route, config.tools, python, dialplan) for route in dialplan.routes}


def module_tools(settings: ToolSettings) -> Mapping[str, PythonTool]:
    """Import ``tools.module`` and return its functions by name. Raises ToolModuleError."""
    if not settings.module:
        return {}
    return python_tools(settings.module, settings.search_path, OWN)


def tool_problems(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield tools and MCP servers that routes name and that do not exist, names used twice, and
    what is wrong with ``tools.module``."""
    place = ("tools", "module")
    try:
        python = module_tools(config.tools)
    except ToolModuleError as error:
        if error.file is None:
            yield config.problem(place, str(error))
        else:
            yield Problem(error.file, error.line, "", str(error))
        return
    shared = [tool.name for tool in dialplan.tools]
    for name in sorted(set(shared) & set(python)):
        yield config.problem(place, f"[[tool]] {name!r} is there, too")
    known = [*python, *shared]
    servers = [server.name for server in config.tools.mcp]
    for route in dialplan.routes:
        for pattern in route.tools:
            if not any(fnmatchcase(name, pattern) for name in known):
                message = f'there is no tool "{pattern}"' + suggestion(pattern, known)
                if config.tools.module and not python:
                    message += f"; {config.tools.module} has no function with a docstring"
                yield dialplan.problem(route.name, ("tools",), message)
        own = [tool.name for tool in route.tool]
        for index, name in enumerate(own):
            if name in own[:index] or any(
                name in known and fnmatchcase(name, pattern) for pattern in route.tools
            ):
                yield dialplan.problem(
                    route.name, ("tool", index, "name"), f"{name!r} is used twice"
                )
        for name in route.mcp:
            if name not in servers:
                message = f'there is no [[tools.mcp]] "{name}"' + suggestion(name, servers)
                yield dialplan.problem(route.name, ("mcp",), message)


def approval_rules(route: Route, values: Mapping[str, str]) -> tuple[ApprovalRule, ...]:
    """Return the ``[[route.approval]]`` rules, with the call's variables filled into prompts."""
    return tuple(
        plan_of(ApprovalRule, one, prompt=partial(_question, one.prompt, values))
        for one in route.approval
    )


def _question(text: str, values: Mapping[str, str], tool: str, given: Mapping[str, object]) -> str:
    told = {ARGUMENT + name: result_text(value)[:200] for name, value in given.items()}
    return render(text, {**values, "tool": tool.replace("_", " "), **told})


def _offer(
    route: Route, settings: ToolSettings, python: Mapping[str, PythonTool], dialplan: Dialplan
) -> RouteTools:

    def chosen(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in route.tools)

    hooks = [*(tool for tool in dialplan.tools if chosen(tool.name)), *route.tool]
    servers = [server for server in settings.mcp if server.name in route.mcp]
    return RouteTools(
        python=tuple(tool for tool in python.values() if chosen(tool.name)),
        webhooks=tuple(_webhook(tool, settings) for tool in hooks),
        mcp=tuple(server.name for server in servers if server.client == "gateway"),
        passed_on=tuple(server.session_tool() for server in servers if server.client == "provider"),
        operators={
            index: Operator(one.url, one.timeout, shown(one.headers))
            for index, one in enumerate(route.approval)
            if one.url is not None
        },
    )


def _webhook(tool: WebTool, settings: ToolSettings) -> Webhook:
    return Webhook(
        name=tool.name,
        description=tool.description,
        parameters=tool.json_schema(),
        method=tool.method,
        url=partial(_url, tool.url),
        in_url=frozenset(
            name.removeprefix(ARGUMENT) for name in names_in(tool.url) if name.startswith(ARGUMENT)
        ),
        headers=shown(tool.headers),
        timeout=tool.timeout or settings.timeout,
        retries=tool.retries,
        idempotent=tool.idempotent,
        max_result_chars=tool.max_result_chars or settings.max_result_chars,
        waiting=Waiting(tool.filler_delay, tool.filler_text, tool.filler_sound or ""),
    )


def _url(text: str, variables: Mapping[str, str], arguments: Mapping[str, str]) -> str:
    named = {ARGUMENT + name: value for name, value in arguments.items()}
    return render(text, {**variables, **named})


def _mcp_settings(server: McpServerSettings, settings: ToolSettings) -> McpSettings:
    """Return the settings of a server that the gateway calls itself."""
    headers = shown(server.headers)
    if server.authorization is not None:
        headers["Authorization"] = f"Bearer {server.authorization.get_secret_value()}"
    return McpSettings(
        name=server.name,
        url=server.url or "",
        headers=headers,
        proxy=settings.http_proxy,
        command=server.command,
        env=shown(server.env),
        folder=str(settings.search_path),
        allowed_tools=server.allowed_tools,
        connect_timeout=server.connect_timeout,
        timeout=server.timeout,
        max_result_chars=settings.max_result_chars,
        needs_approval=server.needs_approval,
        waiting=Waiting(server.filler_delay, server.filler_text),
    )


P = TypeVar("P", bound="DataclassInstance")


def plan_of(plan: type[P], section: Section, **others: Any) -> P:
    """Make a plan from the fields of the same name in a section; ``others`` take precedence.

    What the section leaves out has the plan's default. Raises AttributeError for a field that
    neither has.
    """
    names = [field.name for field in fields(plan) if field.name not in others]
    values = {name: getattr(section, name) for name in names}
    return plan(**{name: value for name, value in values.items() if value is not None}, **others)


RECONNECT_SECONDS = 10.0
"""Seconds for which another session is tried, where the route does not say."""


def transfer_plan(
    route: Route,
    trunks: tuple[TrunkSettings, ...],
    values: Mapping[str, str] = MappingProxyType({}),
    *,
    bridged: bool = False,
    interpreter: InterpreterPlan | None = None,
) -> TransferPlan:
    """Return the destinations of transfers, with the addresses that are called.

    Args:
        values: the call's variables, for caller ids.
        bridged: join both legs here, whatever the mode, where the address can be called.

    Raises ValueError where a route names a trunk that there is not.
    """
    by_name = {trunk.name: trunk for trunk in trunks}
    return TransferPlan(
        destinations=tuple(
            plan_of(
                Destination,
                one,
                **_way(one, by_name, bridged),
                caller_id=_caller_id(one, by_name, values),
                briefing=_briefing(one, values),
            )
            for one in route.transfer
        ),
        sound=route.transfer_call.sound,
        listen=route.transfer_call.listen,
        interpreter=interpreter,
    )


def _briefing(one: Transfer, values: Mapping[str, str]) -> BriefingPlan | None:
    """Return what is said to whoever answers a transfer, with the call's variables filled in."""
    made = one.briefing
    if made is None:
        return None
    prompt = (
        made.prompt
        or f"Press {made.accept_key} to take the call, or {made.decline_key} to decline it."
    )
    return plan_of(
        BriefingPlan, made, text=render(made.text, values), prompt=render(prompt, values)
    )


def _caller_id(
    one: Transfer, trunks: Mapping[str, TrunkSettings], values: Mapping[str, str]
) -> str:
    """Return the caller id for a destination; "" where the trunk's ``caller_ids`` forbids it."""
    try:
        return caller_id_of(render(one.caller_id, values), trunks.get(one.trunk or ""))
    except ValueError:
        return ""


def _way(one: Transfer, trunks: Mapping[str, TrunkSettings], bridged: bool) -> dict[str, str]:
    """Return the URI to call. The target of a REFER stays as it is; other calls need a host."""
    if one.mode == "blind" and not bridged:
        return {"to": one.to}
    try:
        uri = dial_uri(one.to, trunks.get(one.trunk or ""))
    except ValueError:
        if one.mode != "blind":
            raise
        return {"to": one.to}
    return {"to": uri, "mode": "bridge"} if bridged else {"to": uri}


def answer_plan(route: Route) -> AnswerPlan:
    """Return the plan of ``[route.answer]``, with the length (s) of a ``play_to_end`` sound."""
    answer = route.answer
    if answer.mode == "when_ready":
        return AnswerPlan()
    whole = wav_seconds(Path(answer.sound)) if answer.play_to_end else 0.0
    return AnswerPlan(answer.mode, answer.sound, whole)


def interruption_plan(route: Route, session: Mapping[str, Any]) -> InterruptionPlan:
    """Return the plan of ``[route.interruptions]`` for a call with this session object."""
    given, heard = route.interruptions, session["audio"]["input"]
    detection = heard.get("turn_detection") or {}
    silence_ms = detection.get("silence_duration_ms", 0)
    return plan_of(
        InterruptionPlan,
        given,
        backchannel_phrases=given.words(),
        by_gateway=given.by_gateway,
        transcribed=bool(heard.get("transcription")),
        padding_ms=silence_ms + detection.get("prefix_padding_ms", 0),
    )


def turns_by_gateway(session: dict[str, Any]) -> dict[str, Any]:
    """Change a session object so that the server reports turns, and neither interrupts nor
    responds."""
    detection = session["audio"]["input"].setdefault("turn_detection", {})
    complete_detection(detection)
    detection |= {"interrupt_response": False, "create_response": False}
    return session


def metadata_of(route: Route, values: Mapping[str, str]) -> dict[str, str]:
    """Return the route's ``metadata`` for ``response.create``: at most 512 characters each."""
    texts = {name: render(text, values)[:512] for name, text in route.metadata.items()}
    return {name: text for name, text in texts.items() if text}


def fallback_steps(route: Route, endpoints: Sequence[str]) -> tuple[FallbackStep, ...]:
    """Return the steps of ``[[route.fallback]]``, with servers by their number in ``endpoints``.

    Raises ValueError where a route names one that there is not.
    """
    return tuple(
        FallbackStep(
            action=one.action,
            timeout=one.timeout or _step_seconds(one),
            sound=_step_sound(one),
            server=0 if one.server is None else endpoints.index(one.server) + 1,
            transfer_to=one.to or "",
        )
        for one in route.fallback
    )


def _step_seconds(step: Fallback) -> float:
    return (
        wav_seconds(Path(step.sound or "")) if step.action == "announcement" else RECONNECT_SECONDS
    )


def _step_sound(step: Fallback) -> str:
    tries = step.action in ("reconnect", "server")
    return "chime" if tries and step.sound is None else step.sound or ""


def idle_plan(route: Route, values: Mapping[str, str]) -> UserIdlePlan:
    """Return the plan of ``[route.idle]``, with the call's variables filled in."""
    idle = route.idle
    ask, goodbye = render(idle.prompt, values), render(idle.goodbye, values)
    return plan_of(UserIdlePlan, idle, prompt=ask, goodbye=goodbye)


def machine_detection_plan(route: Route) -> MachineDetectionPlan:
    """Return the plan of ``[route.machine_detection]``."""
    ours = route.machine_detection
    words = {
        "music": ours.music_message,
        "voicemail": ours.voicemail_message,
        "bot": ours.bot_message,
    }
    return plan_of(MachineDetectionPlan, ours, actions=ours.actions, messages=words)


def language_plan(route: Route, session: Mapping[str, Any] | None = None) -> LanguagePlan:
    """Return the change of ``session``, the call's, for each language of ``set_language``."""
    given = route.set_language
    instructions = str((session or {}).get("instructions") or "")
    transcription = ((session or {}).get("audio") or {}).get("input", {}).get("transcription")
    updates: dict[str, dict[str, Any]] = {}
    for code, name in given.languages.items():
        words = render(given.instruction, {"language": name})
        update: dict[str, Any] = {"instructions": f"{instructions}\n\n{words}".strip()}
        if transcription:
            spoken = {**transcription, "language": code.partition("-")[0]}
            update["audio"] = {"input": {"transcription": spoken}}
        updates[code] = update
    return LanguagePlan(given.languages, updates)


def recording_plan(config: Config, route: Route) -> RecordingPlan:
    """Return the plan of ``[route.recording]``, with defaults of ``[recording]``."""
    given = route.recording
    return plan_of(
        RecordingPlan,
        given,
        mode=given.mode or config.recording.mode,
        format=given.format or config.recording.format,
        prompt=given.words,
        yes_phrases=tuple(words_of(phrase) for phrase in given.yes_phrases),
        no_phrases=tuple(words_of(phrase) for phrase in given.no_phrases),
    )


def own_tools(
    route: Route, transfer: TransferPlan, recording: RecordingPlan | None = None
) -> list[dict[str, Any]]:
    """Return the definitions of the gateway's own tools that this route enables."""
    schedule = plan_of(SchedulePlan, route.schedule_callback)
    tools = [
        definitions.end_call(route.end_call.description) if _ends_calls(route) else None,
        definitions.transfer_call(transfer, route.transfer_call.description),
        definitions.send_dtmf(plan_of(SendDtmfPlan, route.send_dtmf), route.send_dtmf.description),
        definitions.hold(plan_of(HoldPlan, route.hold), route.hold.description),
        definitions.set_language(language_plan(route), route.set_language.description),
        definitions.collect_digits(
            plan_of(CollectPlan, route.collect_digits, headers={}), route.collect_digits.description
        ),
        definitions.schedule_callback(schedule, route.schedule_callback.description),
        definitions.set_disposition(
            plan_of(DispositionPlan, route.disposition), route.disposition.description
        ),
        definitions.record_call(recording or RecordingPlan(), route.recording.description),
    ]
    return [tool for tool in tools if tool is not None]


def _ends_calls(route: Route) -> bool:
    """Return whether the model gets ``end_call``.

    A session's tools replace those of a hosted prompt: beside one, ``end_call`` is no default.
    """
    decided = "end_call" in route.model_fields_set or "tools" in route.session
    return route.end_call.enabled and (decided or not has_prompt(route))


def has_prompt(route: Route) -> bool:
    """Return whether the session object names a hosted prompt (``session.prompt``)."""
    return bool(route.session.get("prompt"))


def function_plans(functions: Mapping[str, Function]) -> dict[str, FunctionPlan]:
    """Return the plan of each function by name: argument check, timeout, filler, approval."""
    return {name: _function_plan(function) for name, function in functions.items()}


def _function_plan(function: Function) -> FunctionPlan:
    waiting = function.waiting
    return FunctionPlan(
        check=partial(_wrong_arguments, function.parameters),
        # What runs it has the deadline; the call's own is for when that does not keep it.
        timeout=function.timeout + 1.0,
        filler_delay=waiting.filler_delay,
        filler_text=waiting.filler_text,
        filler_sound=waiting.filler_sound,
        approval=function.approval,
    )


def _wrong_arguments(schema: Mapping[str, Any], arguments: str) -> str:
    try:
        parse_arguments(schema, arguments)
    except ToolError as error:
        return str(error)
    return ""


def content_plan(route: Route, values: Mapping[str, str]) -> ContentPlan:
    """Return guardrails, handling of failed responses, context trimming, post-call prompts and the
    messages that sessions begin with."""
    return ContentPlan(
        guardrails=tuple(
            plan_of(GuardrailPlan, one, pattern=one.regex(), headers=shown(one.headers))
            for one in route.guardrail
        ),
        response_failure=plan_of(ResponseFailurePlan, route.response_failure),
        context=plan_of(ContextPlan, route.context),
        post_call=plan_of(PostCallPlan, route.post_call),
        messages=tuple((one.role, render(one.words, values)) for one in route.message),
    )
