"""The figures of a report and of a comparison.

- ``evaluation``: the mean point per vector, before and after, over the cloud of responses; rewards against weights
- ``training``: losses, rewards and seconds over optimizer steps
- ``comparison``: methods side by side
- ``style``: colours, fonts and the names of the judges

They are drawn from the records of runs and need matplotlib only; nothing here touches a global state.
"""
