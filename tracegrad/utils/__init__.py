"""Helpers around training; `tracegrad.utils.checkpoint` trades time for memory."""
