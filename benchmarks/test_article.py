"""Times the article's model by fastlstm and every peer: whole training steps, layers forward and backward, inference.

Two layers of 256 units on 64 x 100 characters, float32. All cells and libraries are timed in one contest, in alternating
blocks, so that ratios between cells are as steady as ratios between libraries.
"""

from __future__ import annotations

from functools import partial

import pytest

import fastlstm
from benchmarks.measure.contest import OURS
from benchmarks.peers import layers
from benchmarks.peers.layers import ARTICLE, CELLS
from benchmarks.speed import ratios

STEPPING = (OURS, "torch", "jax", "keras")
LAYERS = (OURS, "torch", "jax", "thinc")
INFERENCE = (OURS, "torch", "onnxruntime", "jax", "keras", "thinc")
ON_GPU = (OURS, "torch")
TRANSFORMERS = {ratios.SAME: "same_size", ratios.LARGE: "large"}


def keys(whos):
    """Return the contenders by cell, fastlstm first. thinc has only an LSTM."""
    return [(cell, who) for cell in CELLS for who in whos if who != "thinc" or cell == "lstm"]


def transformer(kind, size, device):
    """Return the training step of a decoder."""
    from benchmarks.peers import transformer

    settings = {"vocabulary": size.vocabulary, "window": size.steps}
    if kind == "same_size":
        lstm = fastlstm.LanguageModel(size.vocabulary, "lstm", hidden_size=ARTICLE.hidden, num_layers=ARTICLE.layers)
        settings["count"] = lstm.params.flat.size
    return transformer.training_step(getattr(transformer, kind)(**settings), size, device)


def steps(suite, whos, device="cpu"):
    """Return for each contender a function that makes its training step."""
    size = suite.size
    found = {(cell, who): partial(layers.training_step, cell, who, size, device) for cell, who in keys(whos)}
    return found | {key: partial(transformer, kind, size, device) for key, kind in TRANSFORMERS.items()}


def makers(make, suite, whos):
    """Return for each contender a function that calls `make`, such as `layers.training`, for it."""
    return {(cell, who): partial(layers.alone, make, suite.size.shape(cell), who) for cell, who in keys(whos)}


@pytest.mark.parametrize(("case", "who"), [*keys(STEPPING), *TRANSFORMERS])
def test_training_step(case, who, contest, suite):
    contest(ratios.STEP, case, who, steps(suite, STEPPING))


@pytest.mark.parametrize(("case", "who"), keys(LAYERS))
def test_layers(case, who, contest, suite):
    contest("forward+backward", case, who, makers(layers.training, suite, LAYERS))


@pytest.mark.parametrize(("case", "who"), keys(INFERENCE))
def test_inference(case, who, contest, suite):
    contest("inference", case, who, makers(layers.inference, suite, INFERENCE))


@pytest.mark.parametrize(("case", "who"), [*keys(ON_GPU), *TRANSFORMERS])
def test_training_step_on_gpu(case, who, contest, suite):
    contest(ratios.STEP_CUDA, case, who, steps(suite, ON_GPU, "cuda"), device="cuda")


@pytest.mark.parametrize(("case", "who"), keys(ON_GPU))
def test_inference_on_gpu(case, who, contest, suite):
    contest("inference on the GPU", case, who, makers(layers.inference_on_gpu, suite, ON_GPU), device="cuda")
