"""dashboard: Gold in the browser."""
