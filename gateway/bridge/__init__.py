"""One call: executes the outputs of its state machine, and feeds it inputs."""
