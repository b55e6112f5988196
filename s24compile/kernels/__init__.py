"""One op = one meaning: contracts in `ops/`, one folder of kernels per family, each with its reference.

`patterns`, `packed` and `philox` are leaves; `metadata`, `format` and `target` stand on them and on `errors`;
`providers` chooses; `checks` is what people may pass.
"""
