"""Anomalies of a series while it arrives: the detector, and the state that it can be restarted from."""
