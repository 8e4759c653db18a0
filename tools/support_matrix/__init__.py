"""docs/support.md: what each backend of an op does with each option, read off the code."""
