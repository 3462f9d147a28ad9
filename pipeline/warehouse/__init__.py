"""Gold and dimensions in Redshift or PostgreSQL: loaded, compared, and brought to a new layout."""
