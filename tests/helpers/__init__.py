"""What several test files share: cases, small models, processes, audits of machine code."""
