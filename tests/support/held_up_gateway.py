# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m gateway`` whose threads are held up by ``held_up.c``, compiled to ``$HELD_UP``."""

import os
import sys

os.environ["LD_PRELOAD"] = os.environ["HELD_UP"]
os.execv(sys.executable, [sys.executable, "-m", "gateway", *sys.argv[1:]])
