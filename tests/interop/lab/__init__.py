# SPDX-License-Identifier: GPL-2.0-or-later
"""Asterisk, Kamailio and softphones as processes on loopback, installed nowhere.

:mod:`.debian` fetches the programs, :mod:`.process` runs them; the other modules write the
configuration of one program each and speak its control protocol.
"""
