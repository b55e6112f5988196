"""What the recipes cost in loss: GPTs on real text, dense, narrow and 2:4, same seeds, same batches."""
