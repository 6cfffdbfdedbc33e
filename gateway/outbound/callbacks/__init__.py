"""Calls that the model has promised: kept in a file, told to the operator, placed at their time."""
