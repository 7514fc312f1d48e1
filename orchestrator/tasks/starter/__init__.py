"""What `mi-epo init` writes: a recipe, two rewards and twenty prompts to change into one's own.

starter     the copying
my_rewards.py  two objectives as Python functions, copied as it stands; so are recipe.yaml and the prompts
"""
