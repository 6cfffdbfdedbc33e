# SPDX-License-Identifier: GPL-2.0-or-later
"""Client of realtime servers: typed events, WebSocket sessions, dialects, error tables."""
