# SPDX-License-Identifier: GPL-2.0-or-later
"""Tool calls of the model, their approval, and MCP calls that the server makes."""
