"""Benchmarks: measure, compare with the committed rows, write tables and pictures of the documents.

Nothing in w2s_fast imports this package; it runs from a source checkout as ``python -m bench``.
"""
