"""The self-contained task: a helpful / harmless / humorous assistant that a CPU core can train in minutes.

spec      every word and number
grammar   prompts, sentences and their words; the tokenizer
oracle    exact scores of responses, and the best front any policy can reach
corpus    the text the starting policy imitates
fits      the policy fitted to it, and the gate that it reads w; reward models taught by the oracle
build     all of it, once: folders and report
"""
