# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry of the pjsua2 build; run it through ``build.sh``, with the interpreter to build for."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - any interpreter can be named
    sys.exit(
        f"pjsua2: {sys.executable} is Python {sys.version.split()[0]}; 3.11 or later is needed"
    )

from pjbuild.cli import main

sys.exit(main())
