"""The three figures of a report.

- ``pareto``: the mean point per preference vector, before and after, over the cloud of responses
- ``control``: each objective's reward against its own weight
- ``training``: losses, rewards and seconds over optimizer steps
- ``style``: colours, fonts and the names of the judges

They are drawn from the records in a run directory and need matplotlib only; nothing here touches a global state.
"""
