"""The parts of benchmarks/gemm.py: shapes, operands, peers, check, timing, tuning, chart."""
