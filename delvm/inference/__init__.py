"""Prompting a student: examples and a query in, an answer out."""
