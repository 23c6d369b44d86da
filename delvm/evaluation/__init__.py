"""How well students answer: scores, baselines and a report."""
