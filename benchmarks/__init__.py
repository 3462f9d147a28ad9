"""What each stage costs, measured on a frozen, seeded corpus."""
