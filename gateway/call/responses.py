"""One response at a time: ``response.create`` waits until none is running.

The server refuses a second response in the default conversation
(``conversation_already_has_active_response``), and starts some by itself when a caller's turn
ends, so a request of ours may lose that race; it is then sent again after ``response.done``.
"""

from __future__ import annotations

from collections import deque

from gateway.realtime.commands import CreateResponse

MAX_WAITING = 8
"""Requests kept while a response runs. Each stands for something the caller did; more than these
are old news, and the oldest is dropped and counted."""

UNANSWERED_SECONDS = 10.0
"""A request that brings neither ``response.created`` nor an error within this is given up."""


class ResponseGate:
    """Knows whether a response is running, and holds back those that would collide."""

    def __init__(self) -> None:
        self.active: str | None = None
        """Id of the response that is running, if one is."""
        self.answered: CreateResponse | None = None
        """The request of ours that the latest response answers; None: the server's own."""
        self.given_up = 0
        """Requests to which the server did not say a word."""
        self.dropped = 0
        self._waiting: deque[CreateResponse] = deque()
        self._sent: CreateResponse | None = None
        self._sent_at = 0.0

    @property
    def deadline(self) -> float | None:
        """When to stop waiting for the answer to a request (s)."""
        stuck = self._sent is not None or (self._waiting and self.active is None)
        return self._sent_at + UNANSWERED_SECONDS if stuck else None

    @property
    def idle(self) -> bool:
        """No response runs, was asked for, or waits."""
        return self.active is None and self._sent is None and not self._waiting

    def request(self, create: CreateResponse, now: float) -> CreateResponse | None:
        """Ask for a response; returns what to send now, None when it has to wait.

        One that waits without wishes of its own answers all that has been said by then, so it
        stands for any further one like it.
        """
        if self.active is None and self._sent is None:
            self._sent, self._sent_at = create, now
            return create
        if create.response is None and any(one.response is None for one in self._waiting):
            return None
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(create)
        return None

    def forget_waiting(self) -> None:
        """What waits is not to be asked for any more."""
        self._waiting.clear()

    def created(self, response_id: str) -> CreateResponse | None:
        """``response.created`` came; returns the request that it answers, as far as can be told."""
        self.active = response_id
        self.answered, self._sent = self._sent, None
        return self.answered

    def done(self, response_id: str, now: float) -> CreateResponse | None:
        """``response.done`` came; returns what waited and is to be sent now."""
        if self.active == response_id:
            self.active = None
        return self._next(now)

    def collided(self, create: CreateResponse | None, now: float) -> None:
        """A request met a response that was running; it goes first once that one is done.

        The server's own response may have been announced before the refusal, and was taken for
        the answer then: so the request is named, and None stands for the last one.
        """
        create = self._sent if create is None else create
        if create is None or any(one is create for one in self._waiting):
            return
        if create is self._sent:
            self._sent = None
        self._sent_at = now
        self._waiting.appendleft(create)

    def failed(
        self, create: CreateResponse, now: float, instead: CreateResponse | None = None
    ) -> CreateResponse | None:
        """This request was refused; returns the next one to send, ``instead`` if it is given."""
        if create is self._sent:
            self._sent = instead
            if instead is not None:
                self._sent_at = now
                return instead
        return self._next(now)

    def abandon(self) -> CreateResponse | None:
        """Expect nothing more of the response that runs, or that was asked for; returns our
        request for it, if it was ours."""
        asked = self._sent if self.active is None else self.answered
        self.active = self._sent = None
        return asked

    def unanswered(self, now: float) -> CreateResponse | None:
        """The deadline has come; returns the next one to send."""
        self.given_up += 1
        self._sent = None
        return self._next(now)

    def _next(self, now: float) -> CreateResponse | None:
        if self.active is not None or self._sent is not None or not self._waiting:
            return None
        self._sent, self._sent_at = self._waiting.popleft(), now
        return self._sent
