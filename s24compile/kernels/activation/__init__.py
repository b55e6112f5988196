"""Hidden states that are sparse by themselves: ReLU and squared ReLU, packed 2:4 along their features."""
