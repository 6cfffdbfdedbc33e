"""What is left of calls: one JSON file each."""
