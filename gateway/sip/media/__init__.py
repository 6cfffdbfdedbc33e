"""RTP: media ports, jitter buffer, quality, sounds."""
