# SPDX-License-Identifier: GPL-2.0-or-later
"""Several gateway processes on one machine: who starts them, watches them and ends them.

``supervisor`` decides, ``process`` is one worker seen from outside, ``supervisor_link`` is the one
thing that both sides hold, ``notify`` talks to systemd. Calls are none of this package's business.
"""
