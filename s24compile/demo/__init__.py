"""A plain GPT, real text, and the training run behind `s24 demo` and `s24 train`."""
