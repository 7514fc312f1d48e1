"""Methods on identical work, and what runs are told by.

compare     `mi-epo compare`: tune, run what is missing, gather, tell
cells       which (method, seed, setting) runs there are, running one of them, what it came to; the results file
tables      means, intervals and paired differences over seeds; the tables, as text and as markdown
document    all of it as a page with figures; docs/metrics.md
summary     one run before and after
verdict     what its training came to, in one line
report      its page
figures/    plots
"""
