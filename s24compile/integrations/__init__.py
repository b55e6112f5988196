"""What other libraries need to know of s24compile before they work with it."""
