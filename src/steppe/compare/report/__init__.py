"""A study's results for people: terminal, pictures and a page."""
