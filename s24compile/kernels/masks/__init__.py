"""Which two of four stay: transposable, magnitude and soft-threshold selection."""
