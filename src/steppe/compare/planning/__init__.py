"""What a study compares: options, presets, search spaces, controls."""
