"""Kafka: clients, topics, access, offsets, and streams of Quix."""
