"""What a step and a training loop cost."""
