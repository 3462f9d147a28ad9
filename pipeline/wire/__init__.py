"""From bytes to columns: messages read and judged, and what becomes of those that cannot be."""
