# SPDX-License-Identifier: GPL-2.0-or-later
"""OPTIONS to trunks (RFC 3261 section 11): is the other side there? pjsua2 sends none by itself."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from gateway.sip.settings import Trunk
from gateway.sip.signalling import Signalling

log = structlog.get_logger("sip")


def target_of(trunk: Trunk) -> str:
    """Whom to ask: the proxy, the registrar or the only address of the trunk; empty for nobody."""
    address = trunk.outbound_proxy or trunk.registrar
    if not address and trunk.peers:
        address = trunk.peers[0].host_port
    return f"sip:{address}{trunk.uri_parameters}" if address else ""


class OptionsPinger:
    """Made and used on the SIP thread; ``results`` may be read from others.

    Args:
        account_of: pjsua's number of a trunk's account.
        on_back: told of each trunk that answers after it did not.
    """

    def __init__(
        self,
        signalling: Signalling,
        trunks: tuple[Trunk, ...],
        account_of: Callable[[Trunk], int],
        on_back: Callable[[Trunk], None] = lambda _trunk: None,
    ) -> None:
        self.results: dict[str, str] = {}
        """Last answer of each trunk that is asked: a code, or ``no answer``."""
        self._trunks = [trunk for trunk in trunks if trunk.options_interval and target_of(trunk)]
        self._account_of = account_of
        self._on_back = on_back
        self._due: dict[str, float] = {}
        signalling.on_options = self._on_options
        self._signalling = signalling

    def tick(self, now: float) -> None:
        """Ask where it is due. To be called about once a second."""
        for index, trunk in enumerate(self._trunks):
            if now >= self._due.get(trunk.name, 0.0):
                self._due[trunk.name] = now + trunk.options_interval
                self._ask(index, trunk)

    def _ask(self, index: int, trunk: Trunk) -> None:
        status = self._signalling.send_options(self._account_of(trunk), target_of(trunk), index)
        if status != 0:
            self._note(trunk, f"cannot be sent ({status})")

    def _on_options(self, index: int, status: int) -> None:
        self._note(self._trunks[index], str(status) if status else "no answer")

    def _note(self, trunk: Trunk, result: str) -> None:
        before = self.results.get(trunk.name)
        self.results[trunk.name] = result
        if result == before:
            return
        if result[:1].isdigit():  # whatever it says, somebody is there
            log.info("trunk.reachable", trunk=trunk.name, code=int(result))
            if before is not None and not before[:1].isdigit():
                self._on_back(trunk)
        else:
            log.warning("trunk.unreachable", trunk=trunk.name, error=result)
