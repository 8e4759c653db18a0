"""For other libraries: patched models, batches with weak labels, logits while generating."""
