"""The realtime side of a call: its life, failover and hand-over."""
