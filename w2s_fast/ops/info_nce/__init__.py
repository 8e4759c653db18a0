"""InfoNCE over queries and documents; the matrix of similarities is never stored."""
