"""What the commands share: optimizers and devices by name, words, the console."""
