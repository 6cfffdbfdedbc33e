"""Records of calls: one JSON file each, and one file of session events."""
