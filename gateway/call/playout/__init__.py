"""What the caller hears of each item, to the frame; barge-in and truncation."""
