"""SmolLM2-135M-Instruct (Apache-2.0) as a starting policy that reads w, without a hub where there is none.

start       policy and prompts for a recipe
teaching    a policy that reads w, from one that does not
questions   everyday questions
answers     what the model answers, by vLLM
source      where its weights are found, and as a Hugging Face folder
"""
