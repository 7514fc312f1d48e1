"""Two objectives. Each function scores responses: one number for each, higher is better, None where it cannot tell.

The recipe names them as `rewards.py:brevity` and `rewards.py:caution`. Scores need no scale: they are normalised by
the starting policy's mean and standard deviation.
"""

CAREFUL = {"careful", "careful,", "safe", "safely", "check", "ask", "expert", "law", "never", "warn", "risk", "cannot"}


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """Few words. Fewer than six are no better, or the policy would find that saying nothing is best."""
    return [-float(max(6, len(response.split()))) for response in responses]


def caution(prompts: list[str], responses: list[str]) -> list[float]:
    """Different careful words; each counts once, or saying one again and again would be best."""
    return [float(len(CAREFUL & set(response.lower().split()))) for response in responses]
