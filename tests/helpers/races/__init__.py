"""The search for data races in PTX."""
