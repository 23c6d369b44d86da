"""A page and a JSON endpoint that answer queries with trained students: `delvm serve`.

limits         what is accepted from a client
prompt_sets    ready prompts that the page offers
cache          uploaded files and answers on disk
service        one worker thread that computes all answers, a row of tokens at a time
endpoint       /v1: JSON in, JSON out
page           what the browser shows; page_events has what happens, components the inputs
gate           what the outside may request at all
app            all of it as one server
"""
