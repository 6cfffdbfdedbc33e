# SPDX-License-Identifier: GPL-2.0-or-later
"""One call: executes the outputs of its state machine, and feeds it inputs."""
