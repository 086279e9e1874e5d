"""Writes ``label_errors.json``: the label errors that cleanlab finds in drawn probabilities.

    pip install cleanlab==2.9.0 && python -m tests.golden.make_label_errors

The tests draw the same probabilities, and compare with ``analysis.label_errors``; no test needs the
package.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import random
from fcifar.analysis.label_errors import FILTERS, RANKINGS


class Case(NamedTuple):
    """How to draw probabilities and labels."""

    examples: int
    classes: int
    flipped: float  # part of the labels
    sharpness: float  # factor of the logits
    skew: float = 0.0  # how much more frequent the first classes are
    seed: int = 0  # one without two equal rounding errors: cleanlab's choice is the machine's


CASES = {
    "two classes": Case(300, 2, 0.2, 3.0),
    "seven classes": Case(2000, 7, 0.2, 4.0, seed=3),
    "unsure": Case(400, 5, 0.3, 1.0, seed=4),
    "rare classes": Case(500, 6, 0.1, 4.0, 3.0, seed=5),
    "few examples": Case(40, 4, 0.2, 2.0, seed=4),
}


def draw(case: Case) -> tuple[Tensor, Tensor]:
    """The probabilities, float64 [N, C], and the given labels, int64 [N], of a case."""
    n, c = case.examples, case.classes
    class_key, logit_key, flip_key, offset_key = random.split(random.key(case.seed), 4)
    u = random.uniform(class_key, (n,)).double() ** (1 + case.skew)
    true = (u * c).long().clamp(max=c - 1)
    logits = random.uniform(logit_key, (n, c)).double()
    logits += 0.7 * (torch.arange(c) == true[:, None])
    is_flipped = random.uniform(flip_key, (n,)) < case.flipped
    offset = random.randint(offset_key, (n,), 1, c)
    labels = torch.where(is_flipped, (true + offset) % c, true)
    return (2 * case.sharpness * logits).softmax(1), labels


def main() -> None:
    """Write the file."""
    from cleanlab.count import compute_confident_joint, get_confident_thresholds
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    cases = {}
    for name, case in CASES.items():
        p, labels = (values.numpy() for values in draw(case))
        cases[name] = {
            "thresholds": get_confident_thresholds(labels, p).tolist(),
            "joint": compute_confident_joint(labels, p, calibrate=False).tolist(),
            "calibrated": compute_confident_joint(labels, p, calibrate=True).tolist(),
            "scores": {
                rank: get_label_quality_scores(labels, p, method=rank)[:20].tolist()
                for rank in RANKINGS
            },
            "rows": {
                by: {
                    rank: find_label_issues(
                        labels, p, filter_by=by, return_indices_ranked_by=rank, n_jobs=1
                    ).tolist()
                    for rank in RANKINGS
                }
                for by in FILTERS
            },
        }
    source = "cleanlab 2.9.0 in float64: tests/golden/make_label_errors.py"
    text = json.dumps({"source": source, "cases": cases}, separators=(",", ":"))
    Path(__file__).with_name("label_errors.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
