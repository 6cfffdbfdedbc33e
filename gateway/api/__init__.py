# SPDX-License-Identifier: GPL-2.0-or-later
"""The control API over HTTP, health, readiness and metrics."""
