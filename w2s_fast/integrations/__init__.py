"""For the trainers of other libraries: patched models, and batches with weak labels."""
