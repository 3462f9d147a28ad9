"""Delta tables: written exactly once, read, followed, laid out and kept small."""
