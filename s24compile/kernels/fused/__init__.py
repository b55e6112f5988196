"""Ops that do several others' work in one pass."""
