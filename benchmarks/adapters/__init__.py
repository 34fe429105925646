"""One module per framework: `load(mode, threads)` returns a function `Workload -> Prepared`."""
