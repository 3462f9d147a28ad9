"""What the monitor asks, remembers and reports: objectives, breaches, silence, stalls and the daily digest."""
