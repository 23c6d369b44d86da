"""The procedural corpus, on photographs that ship inside packages."""
