"""How fast is it, as ratios that were taken side by side in one run: `mi-epo bench`, docs/performance.md.

bench       the command
parts       the measurements: names, deadlines, at which sizes
subjects    policies, judges and prompts that are measured; all made here but SmolLM2
learners    an update against plain torch, padded and not
steps       whole steps of short runs; what they cost by vectors, objectives, prompt length, engines
beside_trl  whole steps of TRL's OnlineDPOTrainer on the same work; a program of its own
page        the outcomes as a page of markdown
"""
