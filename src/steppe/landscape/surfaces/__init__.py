"""The loss at other points: along lines, on planes, between models, and in a small ball."""
