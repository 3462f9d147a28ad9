"""Windows of sensors, made again where Silver changed."""
