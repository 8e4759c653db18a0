"""The ops as a package for the loader of compute kernels on the Hugging Face Hub."""
