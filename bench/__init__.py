"""Speed of the ops: measure (``run``), compare two measurements, write the tables (``report``).

Nothing in w2s_fast imports this package; it runs from a source checkout as ``python -m bench``.
"""
