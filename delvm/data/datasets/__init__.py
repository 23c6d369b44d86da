"""Datasets of sentences and images, and the order in which they come."""
