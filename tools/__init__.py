"""What maintainers run in a source checkout; nothing here is in the wheel."""
