"""Devices that are not there: made up or replayed from recordings, with the faults that were put in."""
