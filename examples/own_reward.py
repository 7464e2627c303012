"""A reward of your own: short chains whose every step draws, in words that a reader can follow.

In a job's specification (the server allows the file's folder with OMNI_R1_REWARDS_DIR):

    {"method": "perpo", ..., "hyperparameters": {"reward": {"custom":
        {"file": "/rewards/own_reward.py:tidy", "weight": 0.1}}}}

Try it on one answer first: omni-r1 grade "red" "red" --reward examples/own_reward.py:tidy

A reward gets the question (question, reference, choices, slice, images) and the response (answer, steps, accuracy,
format, perception, num_tokens), and returns a number, or several by name, which are added up. It runs in a process of
its own; an exception, NaN or a call that takes too long leaves the response out and is counted.
"""

from training.scoring.custom import Response, Sample

MOST_STEPS = 4
LONGEST_TEXT = 80  # characters of a step


def tidy(sample: Sample, response: Response) -> dict[str, float]:
    """Between 0 and 1: a third each for few steps, for steps that draw, and for short texts."""
    steps = response.steps
    if not steps or response.answer is None:
        return {"few": 0.0, "drawn": 0.0, "short": 0.0}
    few = min(1.0, MOST_STEPS / len(steps))
    drawn = sum(step.codes is not None for step in steps) / len(steps)
    short = sum(len(step.text) <= LONGEST_TEXT for step in steps) / len(steps)
    return {"few": few / 3, "drawn": drawn / 3, "short": short / 3}


def names_the_answer(sample: Sample, response: Response) -> float:
    """1 if a step already mentions the answer, so that the drawing led to it."""
    said = " ".join(step.text for step in response.steps).lower()
    return float(bool(response.answer) and response.answer.lower() in said)
