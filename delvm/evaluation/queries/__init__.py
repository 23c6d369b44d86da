"""What an evaluation asks: held-out queries, and the prompts before them."""
