"""tracegrad: a graph-compiling autograd with readable generated code."""
