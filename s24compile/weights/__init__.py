"""The state behind each sparse parameter: mask, schedule, packed operands, checkpoints."""
