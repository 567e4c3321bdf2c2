"""What a checkpoint answers, and all that is said of its answers."""
