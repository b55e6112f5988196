"""`Sparse24`: a 2:4 matrix that is a torch.Tensor, and how to make one.

* `construct`: `to_sparse_semi_structured`, from a dense tensor. `scaling`: one scale per tensor for 8-bit values.
* `sparse24`: the class. `dispatch`: what aten ops do with it. `products`: its matrix products.
* `saved`: what `torch.save` writes, and what `torch.load(weights_only=True)` may call.

This module imports nothing: `import s24compile` reaches `saved` through it, and must stay cheap.
"""
