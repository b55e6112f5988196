"""From Dynamo's graph to a callable: the backend of torch.compile, `sparse_ffn`, and `explain`."""
