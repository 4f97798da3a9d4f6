"""Compares the answers of two builds: compare.py ONE OTHER, each the path of a reply and a log at level `trace` without their
endings (`.reply`, `.log`). Fails when what they say differs and one of them was sure of it.

The log has the five likeliest tokens for each that was said. Up to the first difference both chose after the same text, so that their
logits can be compared: what rounding does to them, and how near the two tokens were between which it decided.
"""

import json
import os
import re
import sys

# Where the one's choice leads the other's by more than this, rounding did not decide.
NEAR_TIE = 0.5


def steps(path: str) -> list[tuple[int, dict[int, float]]]:
    """For each token that was said: which, and the logits of the likeliest."""
    said = re.compile(r"\bsays (\d+); likeliest:((?: \d+:\S+)+)")
    with open(path + ".log") as log:
        found = [said.search(line) for line in log]
    pairs = ((int(match[1]), match[2].split()) for match in found if match)
    return [(token, {int(id): float(logit) for id, logit in (pair.split(":") for pair in likeliest)}) for token, likeliest in pairs]


def answer(path: str) -> str:
    with open(path + ".reply") as reply:
        return json.load(reply)["answer"]


one, other = sys.argv[1:]
name = os.path.basename(one)
ours, theirs = answer(other), answer(one)
pairs = list(zip(steps(one), steps(other)))
assert pairs, "the logs hold no tokens"
parted = next((at for at, ((a, _), (b, _)) in enumerate(pairs) if a != b), None)
compared = pairs if parted is None else pairs[: parted + 1]
differences = [abs(one[id] - other[id]) for (_, one), (_, other) in compared for id in one.keys() & other.keys()]
words = f"{len(compared)} tokens compared, their logits within {max(differences):.3f}"
if parted is None:
    assert ours == theirs, "the same tokens make other texts"
    print(f"same text as {name}; {words}")
else:
    (a, one), (b, other) = pairs[parted]
    leads = [one[a] - one.get(b, -99), other[b] - other.get(a, -99)]
    at = len(os.path.commonprefix([ours, theirs]))
    print(
        f"differs from {name} at character {at} ({ours[at:at + 20]!r} for {theirs[at:at + 20]!r}), "
        f"where its token leads by {leads[0]:.3f} there and the other by {leads[1]:.3f} here; {words}"
    )
    if max(leads) > NEAR_TIE:
        sys.exit(1)
