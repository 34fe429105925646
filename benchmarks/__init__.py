"""Benchmarks against installed peers: `python -m benchmarks`. Start reading at `harness.run`."""
