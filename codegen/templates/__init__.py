"""Templates of generated code, and the C prelude that they share; data files of the package."""
