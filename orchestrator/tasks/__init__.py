"""What is built before a run.

assets      folders built once
fitting/    supervised fitting of policies, Bradley-Terry training of reward models
miniature/  the self-contained task
dialogues/  the same preparation for real preference dialogues
smoke       any recipe on CPU with tiny models
"""
