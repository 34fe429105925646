"""The intermediate representation: values, graphs, the table of primitives, and passes."""
