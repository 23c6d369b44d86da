"""Answering: a batch at a time, by one process or several, kept so that it can be continued."""
