"""From a route to the plan of a call's content. Pure."""

from __future__ import annotations

from gateway.call.rules.plan import (
    ContentPlan,
    ContextPlan,
    GuardrailPlan,
    PostCallPlan,
    ResponseFailurePlan,
)
from gateway.dialplan import Route


def content_plan(route: Route) -> ContentPlan:
    """What must not be said, answers that fail, long conversations, questions at the end."""
    rescue, keep, afterwards = route.response_failure, route.context, route.post_call
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
            message=rescue.message,
            retries=rescue.retries,
            content_filter_message=rescue.content_filter_message,
            continue_incomplete=rescue.continue_incomplete,
            sound=rescue.sound,
            sound_duration=rescue.sound_duration,
            max_failures=rescue.max_failures,
            goodbye=rescue.goodbye,
            transfer_to=rescue.transfer_to or "",
        ),
        context=ContextPlan(keep.max_turns, keep.strategy, keep.instructions, keep.timeout),
        post_call=PostCallPlan(afterwards.prompts, afterwards.timeout),
    )
