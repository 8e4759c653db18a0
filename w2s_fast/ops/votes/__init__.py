"""Passes over vote matrices: range check, summary, second moments, products with one-hot votes."""
