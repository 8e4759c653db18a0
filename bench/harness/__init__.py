"""Measure candidates in turns and processes of their own, and store the rows."""
