"""`mi-epo compare`: every method and seed on the same work.

cells.py       which (method, seed, beta) runs there are, and running one of them
results.py     what a finished cell came to, and the results file
statistics.py  means, intervals and paired differences over seeds
tables.py      the tables, as text and as markdown
reading.py     what the differences say, in sentences
document.py    all of it as a page with figures
command.py     the command: tune, run what is missing, gather, tell
"""
