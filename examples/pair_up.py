"""Make pairs for tvnet aslan-eval out of labelled films: python examples/pair_up.py labels.csv > pairs.csv.

The labels are a CSV with the columns file, class and group; films of one group have something else in common, such as
the people or the place. Groups are dealt to folds, so that no group is in two of them; pairs are of two groups of one
fold: all that show the same class, and as many that do not.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from itertools import combinations
from pathlib import Path


def main() -> None:
    """Read labels, write pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--set", help="take only rows with this in the column set")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with arguments.labels.open(encoding="utf-8-sig", newline="") as file:
        films = [row for row in csv.DictReader(file) if arguments.set in (None, row.get("set"))]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["video_a", "video_b", "label", "fold"])
    groups = sorted({film["group"] for film in films})
    for fold in range(arguments.folds):
        own = groups[fold * len(groups) // arguments.folds : (fold + 1) * len(groups) // arguments.folds]
        pairs = list(combinations(sorted((film for film in films if film["group"] in own), key=lambda f: f["file"]), 2))
        pairs = [(a, b) for a, b in pairs if a["group"] != b["group"]]
        same = [(a, b) for a, b in pairs if a["class"] == b["class"]]
        others = random.Random(arguments.seed + fold).sample([pair for pair in pairs if pair not in same], len(same))
        for label, chosen in ((1, same), (0, others)):
            writer.writerows([a["file"], b["file"], label, fold + 1] for a, b in chosen)


if __name__ == "__main__":
    main()
