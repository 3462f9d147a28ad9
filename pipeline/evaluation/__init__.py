"""How good detection is: its findings beside labels."""
