"""Is this machine able to run the product, and how fast: `deploy/gpu/check.sh`. Figures of one GPU in eight minutes.

__main__    the parts in turn, each a process of its own with a deadline; check.json and check.md
parts       the parts: names, deadlines, what each returns
trainings   short runs of the product on this machine: the miniature, an engine that is killed, SmolLM2-135M
rollouts    an engine of the product against vLLM alone on the same requests; sleep and wake
updates     a learner's update at a model's size: tokens a second, share of the card's peak, memory
models      models of given sizes with random weights
machine     versions, card, driver, speed of a matrix product and of copies
"""
