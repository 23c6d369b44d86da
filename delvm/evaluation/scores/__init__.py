"""Scores of answers, of trivial baselines and of the tokenizer, and their intervals."""
