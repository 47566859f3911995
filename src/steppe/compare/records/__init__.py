"""What a study holds, as dataclasses and JSON."""
