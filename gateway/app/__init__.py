"""The process: start, serve, drain and stop; which INVITE becomes a call; workers."""
