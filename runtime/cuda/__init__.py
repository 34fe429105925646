"""CUDA devices: memory, modules, launches.

`driver` is the one module that touches pycuda; `memory` is the pool; `cubins` compiles; `executable`
makes a unit callable. Start reading at `executable`.
"""
