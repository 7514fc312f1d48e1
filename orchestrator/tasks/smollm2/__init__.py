"""SmolLM2-135M-Instruct (Apache-2.0) as a starting policy that reads w, without a hub where there is none.

start       policy and prompts for a recipe
questions   everyday questions
source      where its weights are found, and as a Hugging Face folder
"""
