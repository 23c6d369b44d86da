"""What an evaluation asks: held-out queries, the prompts before them, and checks of both."""
