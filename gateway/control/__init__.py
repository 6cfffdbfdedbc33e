"""The control socket: a running gateway says how it is, to its own user on its own machine."""
