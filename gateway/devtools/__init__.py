"""What one develops and tests with: emulator, scripted caller, timeline, demo, doctor."""
