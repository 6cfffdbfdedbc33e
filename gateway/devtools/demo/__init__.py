# SPDX-License-Identifier: GPL-2.0-or-later
"""One scripted call through emulator and gateway on this machine, shown and checked."""
