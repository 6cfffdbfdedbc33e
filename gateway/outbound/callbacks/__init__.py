"""Callbacks that the model has promised: kept in a file, sent to a URL, placed when due."""
