"""The models that the built-in tasks train: for images, for text, and pretrained ones."""
