"""Tables of README and documentation, made of benchmarks/results: no figure in them is typed by hand."""
