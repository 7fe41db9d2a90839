"""Draw docs/trie.svg with the project's own code: `python docs/draw_trie.py` (needs matplotlib)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data import ancestor_mask, build_trie, collate

NAMES = {1: "Q", 2: ":", 3: "a", 4: "b", 5: "c", 6: "d", 7: "."}
ANSWERS = [(3, 4, 7), (3, 7), (5, 6)]
PROMPT, ANSWER, PREDICTED = "#0072B2", "#E69F00", "white"  # told apart by the colour-blind


def main() -> None:
    trie = build_trie((1, 2), ANSWERS)
    batch = collate([trie])
    mask = ancestor_mask(batch.positions, batch.ends)[0]
    size = len(trie.tokens)
    plt.rcParams.update({"font.size": 11, "svg.hashsalt": "trie", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=[3, 2])

    # The trie: node i at its depth; the three tokens that are predicted only, at their own heights.
    heights = iter((0.5, 0.5, 1.5, 2.0, -0.5))
    spots = [(depth, next(heights)) for depth in trie.depths]
    only_predicted = iter(((4, 2.0), (3, 1.0), (3, -0.5)))
    left.plot(*zip(*spots[:2], strict=True), color="black", zorder=1)
    for start, token in zip(trie.edge_from, trie.edge_token, strict=True):
        below = range(start + 1, trie.ends[start])
        depth = trie.depths[start] + 1
        node = next((k for k in below if (trie.tokens[k], trie.depths[k]) == (token, depth)), None)
        to = next(only_predicted) if node is None else spots[node]
        style = "--" if node is None else "-"
        left.plot(*zip(spots[start], to, strict=True), style, color="black", zorder=1)
        if node is None:
            draw(left, to, NAMES[token], PREDICTED, "")
    for i, spot in enumerate(spots):
        draw(left, spot, NAMES[trie.tokens[i]], PROMPT if i < 2 else ANSWER, str(i))
    left.set(xlim=(-0.5, 4.6), ylim=(-1.1, 2.7), xlabel="position in the text", yticks=[])
    left.set_xticks(range(5))
    left.set_title("five tokens are fed, three only predicted", fontsize=11)
    for side in ("top", "left", "right"):
        left.spines[side].set_visible(False)

    right.imshow(mask, cmap="Greys", vmin=0, vmax=1.4)
    right.set_xticks([i - 0.5 for i in range(1, size)], minor=True)
    right.set_yticks([i - 0.5 for i in range(1, size)], minor=True)
    right.grid(which="minor", color="white", linewidth=1.5)
    right.tick_params(which="minor", length=0)
    labels = [NAMES[t] for t in trie.tokens]
    right.set_xticks(range(size), labels)
    right.set_yticks(range(size), labels)
    right.set(xlabel="may see", title="the mask: row i, column j")
    right.title.set_fontsize(11)
    figure.tight_layout()
    target = Path(__file__).with_name("trie.svg")
    figure.savefig(target, metadata={"Date": None})
    for other in sys.argv[1:]:
        figure.savefig(other)


def draw(axes, spot, name, colour, number):
    axes.scatter(*spot, s=520, color=colour, edgecolor="black", zorder=2)
    light = colour == PROMPT
    axes.text(*spot, name, ha="center", va="center", color="white" if light else "black", zorder=3)
    axes.text(spot[0] + 0.17, spot[1] + 0.24, number, fontsize=8, color="#444444")


if __name__ == "__main__":
    main()
