# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a build: always a sentence that says what is missing or what could not be reached."""


class BuildError(Exception):
    """The build cannot go on; the text says why and what to do, and nothing was changed."""
