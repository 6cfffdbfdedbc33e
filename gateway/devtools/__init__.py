"""TODO gateway/devtools."""
