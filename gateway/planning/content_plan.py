"""From a route to the plan of a call's content. Pure."""

from __future__ import annotations

from gateway.call.plan import (
    ContentPlan,
    ContextPlan,
    GuardrailPlan,
    PostCallPlan,
    ResponseFailurePlan,
)
from gateway.dialplan import Route


def content_plan(route: Route) -> ContentPlan:
    """What must not be said, answers that fail, long conversations, questions at the end."""
    failure, context, post_call = route.response_failure, route.context, route.post_call
    return ContentPlan(
        guardrails=tuple(
            GuardrailPlan(
                speaker=one.speaker,
                pattern=one.regex(),
                url=one.url or "",
                headers={name: value.get_secret_value() for name, value in one.headers.items()},
                timeout=one.timeout,
                on_timeout=one.on_timeout,
                action=one.action,
                replacement=one.replacement,
                transfer_to=one.transfer_to or "",
                name=one.name,
            )
            for one in route.guardrail
        ),
        response_failure=ResponseFailurePlan(
            message=failure.message,
            retries=failure.retries,
            content_filter_message=failure.content_filter_message,
            continue_incomplete=failure.continue_incomplete,
            sound=failure.sound,
            sound_duration=failure.sound_duration,
            max_failures=failure.max_failures,
            goodbye=failure.goodbye,
            transfer_to=failure.transfer_to or "",
        ),
        context=ContextPlan(
            context.max_turns, context.strategy, context.instructions, context.timeout
        ),
        post_call=PostCallPlan(post_call.prompts, post_call.timeout),
    )
