"""Label models: accuracy on WRENCH data, time against Snorkel, memory with many classes."""
