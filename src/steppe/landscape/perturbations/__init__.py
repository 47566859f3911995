"""What is left of a model when its weights or its inputs change after training."""
