"""Wheels of every platform and Python, and the source distribution that they are made from."""
