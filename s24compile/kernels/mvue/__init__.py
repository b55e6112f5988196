"""The minimum-variance unbiased 2:4 estimate."""
