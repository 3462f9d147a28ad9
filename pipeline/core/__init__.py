"""The calculations of the pipeline: units, scores, rolling state and windows, as pure functions over frames."""
