"""What `delvm generate` reads and writes: prompts, queries, videos, answers and their record."""
