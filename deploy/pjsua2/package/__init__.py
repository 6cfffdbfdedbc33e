# SPDX-License-Identifier: GPL-2.0-or-later
"""pjproject's pjsua2 API, built for this machine by ``deploy/pjsua2``.

``BUILD`` says what it was built from and for how many calls; the rest is pjsua2's.
"""

from ._build import BUILD
from .pjsua2 import *  # noqa: F403

__version__: str = BUILD["version"]
