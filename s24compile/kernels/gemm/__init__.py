"""The 2:4 matrix product."""
