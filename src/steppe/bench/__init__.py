"""What a step costs: time against other optimizers and the machine's own speed, and memory."""
