"""What is said: responses, items, transcript, and what rules may do in a conversation."""
