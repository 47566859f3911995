"""Training one run of an optimizer: its settings, its epochs, its measures, its files."""
