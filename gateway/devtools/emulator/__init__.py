# SPDX-License-Identifier: GPL-2.0-or-later
"""An embedded Realtime server to develop, test and demonstrate against. No model is behind it.

It needs the ``devtools`` extra (voice activity detection, resampling, speech synthesis), so
its modules are imported only where they are used.
"""
