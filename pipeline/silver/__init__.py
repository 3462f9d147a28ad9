"""From raw readings to good ones: copies found, ceilings and state kept, history retraced."""
