"""Tensors, the tape and its engine, recording and `compile`. Start reading at `tensor`."""
