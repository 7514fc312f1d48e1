"""The self-contained task: a helpful / harmless / humorous assistant that a CPU core can train in minutes.

spec      every word and number
grammar   prompts, sentences and their words; the tokenizer; the text the starting policy imitates
oracle    exact scores of responses, and the best front any policy can reach
fits      the policy fitted to that text, and the gate that it reads w; reward models taught by the oracle
build     all of it, once: folders and report
"""
