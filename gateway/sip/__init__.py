# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP user agent on pjsua2. The only package that imports pjsua2."""
