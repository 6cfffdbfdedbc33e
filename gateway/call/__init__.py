"""The heart: what a call decides, as pure code. No sockets, no threads, no clock."""
