"""What a run will ask of its GPUs, from the recipe alone: pure arithmetic, nothing loads.

shapes   layers, widths and parameters of a model
memory   what engines, ranks and judges hold on a GPU and in host memory, and what cannot fit
speed    seconds of sampling, scoring and learning, and who waits for whom
split    how many GPUs for engines, learner and judges
table    all of it as `mi-epo plan` prints it
"""
