"""2:4 matrices to values and metadata, and back."""
