"""The realtime protocol: typed GA events, a WebSocket session, its errors. Knows no telephones."""
