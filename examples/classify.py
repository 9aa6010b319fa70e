"""Classify waves by their shape: sine, square, sawtooth and noise, of any phase, pitch, loudness and length.

python examples/classify.py --help
"""

import argparse
from collections.abc import Sequence

import numpy as np

import fastlstm

SHAPES = ("sine", "square", "sawtooth", "noise")


def make_waves(count: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return waves [count, steps, 1], the number of each wave's shape, and its length."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(0, len(SHAPES), count)
    cycles = rng.uniform(2, 5, (count, 1)) * np.arange(steps) / steps + rng.uniform(0, 1, (count, 1))
    sine, noise = np.sin(2 * np.pi * cycles), rng.normal(0, 0.7, cycles.shape)
    kinds = [sine, np.sign(sine), 2 * (cycles % 1) - 1, noise]
    waves = np.choose(shape[:, None], kinds) * rng.uniform(0.5, 2, (count, 1)) + rng.normal(0, 0.15, cycles.shape)
    return waves[..., None], shape, rng.integers(steps // 2, steps + 1, count)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, print how new waves are classified, and return the accuracy on them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waves", type=int, default=2000, help="number of waves to train on")
    parser.add_argument("--steps", type=int, default=60, help="longest wave")
    parser.add_argument("--cell", choices=["lstm", "gru", "rnn"], default="lstm")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    waves, shape, lengths = make_waves(options.waves, options.steps, options.seed)
    train = fastlstm.Batches(waves, shape, batch_size=32, lengths=lengths, seed=options.seed)
    waves, shape, lengths = make_waves(1000, options.steps, options.seed + 1)

    model = fastlstm.SequenceClassifier(1, len(SHAPES), cell=options.cell, hidden_size=32, seed=options.seed)
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=0.01))
    trainer.fit(train, epochs=options.epochs)

    found = model.predict(waves.swapaxes(0, 1), lengths)  # models take time first: [steps, waves, 1]
    print("How 1000 new waves are classified (a row for each true shape):")
    print(" " * 12 + "".join(f"{name:>10}" for name in SHAPES))
    for k, name in enumerate(SHAPES):
        print(f"  {name:10}" + "".join(f"{int(((shape == k) & (found == other)).sum()):10}" for other in range(len(SHAPES))))
    accuracy = float((found == shape).mean())
    print(f"Accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
