# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of calls: rows, record files, event logs, recordings, black boxes, webhooks."""
