"""Simulations of the statistics: how often intervals contain what they estimate."""
