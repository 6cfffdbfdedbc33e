"""Audio as bytes: G.711 laws, 20 ms frames, the queues between the media clock and the event loop."""
