"""Tools for maintainers in a source checkout; not in the wheel."""
