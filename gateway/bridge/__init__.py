"""One call: executes what its machine decides, and feeds it what happens."""
