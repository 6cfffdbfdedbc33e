# SPDX-License-Identifier: GPL-2.0-or-later
"""The realtime protocol: typed GA events, a WebSocket session, its errors. Knows no telephones."""
