"""From a route to the plan of a call's content. Pure."""

from __future__ import annotations

from gateway.call.rules.plan import AfterwardsPlan, ContentPlan, GuardRule, KeepPlan, RescuePlan
from gateway.dialplan import Route


def content_plan(route: Route) -> ContentPlan:
    """What must not be said, answers that fail, long conversations, questions at the end."""
    rescue, keep, afterwards = route.rescue, route.keep, route.afterwards
    return ContentPlan(
        guards=tuple(
            GuardRule(
                who=one.who,
                pattern=one.regex(),
                url=one.url or "",
                headers={name: value.get_secret_value() for name, value in one.headers.items()},
                seconds=one.seconds,
                on_timeout=one.on_timeout,
                action=one.action,
                say=one.say,
                transfer_to=one.transfer_to or "",
                name=one.name,
            )
            for one in route.guard
        ),
        rescue=RescuePlan(
            say=rescue.say,
            retries=rescue.retries,
            filtered=rescue.filtered,
            go_on=rescue.go_on,
            sound=rescue.sound,
            sound_seconds=rescue.sound_seconds,
            give_up=rescue.give_up,
            goodbye=rescue.goodbye,
            transfer_to=rescue.transfer_to or "",
        ),
        keep=KeepPlan(keep.turns, keep.how, keep.instructions, keep.seconds),
        afterwards=AfterwardsPlan(afterwards.questions, afterwards.seconds),
    )
