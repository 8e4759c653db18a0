"""What is measured: inputs, candidates and errors, a file a benchmark."""
