"""Cross-entropy with weak labels: ``api``, ``algorithm``, ``autograd`` and a file a backend."""
