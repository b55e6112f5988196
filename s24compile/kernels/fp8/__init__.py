"""Eight-bit floats: tensors quantised by one scale each, and packing into them."""
