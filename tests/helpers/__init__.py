"""What several test files use, and no test is in."""
