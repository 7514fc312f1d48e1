"""What `mi-epo init` writes: a recipe, two rewards and twenty prompts to change into one's own.

starter       the copying
my_rewards    two objectives as Python functions, copied as they stand; so are the recipes and the prompts
"""
