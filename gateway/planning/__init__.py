# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the plan of one call out of configuration, route and INVITE. Pure."""
