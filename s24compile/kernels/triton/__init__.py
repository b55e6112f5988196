"""What Triton kernels of several ops share: tiles and launches, the formats on the device, and the kernels that pack.

========================  =====================================================================================
`tiles`, `launch`         launch configurations, a table; the way from a call to a running kernel
`batch`                   many tensors in one launch
`supports`                what dtypes, formats and strides the kernels take, in sentences
`parts`                   an operand's buffers as the kernels see them, and the part that one weight fills
`values`, `store`         device functions: values taken apart and rounded; a tile written in a 2:4 format
`search`, `sample`        device functions: the best transposable pattern; the MVUE of a group
`blocks`, `rows`          the two kernels that pack: 4x4 blocks both ways, groups along one dim
`packing`                 their launches
========================  =====================================================================================

The ops' own kernels are beside their references (`kernels/<op>/triton*.py`). Loaded when Triton is chosen.
"""
