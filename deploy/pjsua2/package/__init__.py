"""pjproject's pjsua2 API, built for this machine by the gateway's own build.

``BUILD`` says what it was built from and for how many calls; the rest is pjsua2's.
"""

from ._build import BUILD
from .pjsua2 import *  # noqa: F403

__version__: str = BUILD["version"]
