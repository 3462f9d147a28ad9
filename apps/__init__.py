"""The processes and the tools: one module per command of `pipeline`."""
