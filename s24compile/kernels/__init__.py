"""One op = one meaning: contracts in `ops/`, one folder of kernels per family, each with its reference.

`patterns`, `format`, `packed`, `philox` and `target` are leaves; `providers` chooses; `checks` is what people may pass.
"""
