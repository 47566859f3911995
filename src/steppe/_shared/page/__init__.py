"""Pages that are one self-contained HTML file."""
