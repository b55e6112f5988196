"""Masked decay on gradients."""
