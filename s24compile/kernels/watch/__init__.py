"""Samples of weights, by which writes are found that nothing else shows."""
