# SPDX-License-Identifier: GPL-2.0-or-later
"""Audio as bytes: the G.711 codecs, and the queues between media clock and event loop."""
