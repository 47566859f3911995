"""A study's results for readers: tables in the terminal, pictures, and an HTML page."""
