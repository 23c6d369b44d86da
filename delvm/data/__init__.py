"""From raw pictures to shards of pairs and tokens."""
