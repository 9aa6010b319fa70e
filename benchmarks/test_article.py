"""The article's model by fastlstm and every peer: whole training steps, layers forward and backward, inference.

Two layers of 256 units on 64 x 100 characters, float32. All cells and contenders of one way are timed in one contest, in
alternating blocks, so that ratios between cells are as steady as those between contenders.
"""

from __future__ import annotations

from functools import partial

import pytest

import fastlstm
from benchmarks.measure.contest import OURS
from benchmarks.peers import layers as peers
from benchmarks.peers.layers import ARTICLE, CELLS
from benchmarks.speed import ratios

STEPPING = (OURS, "torch", "jax", "keras")
LAYERS = (OURS, "torch", "jax", "thinc")
INFERENCE = (OURS, "torch", "onnxruntime", "jax", "keras", "thinc")
ON_GPU = (OURS, "torch")
TRANSFORMERS = {ratios.SAME: "same_size", ratios.LARGE: "large"}


def keys(whos):
    """By cell, fastlstm first; thinc has an LSTM alone."""
    return [(cell, who) for cell in CELLS for who in whos if who != "thinc" or cell == "lstm"]


def transformer(kind, size, device):
    """A decoder's training step."""
    from benchmarks.peers import transformer

    settings = {"vocabulary": size.vocabulary, "window": size.steps}
    if kind == "same_size":
        lstm = fastlstm.LanguageModel(size.vocabulary, "lstm", hidden_size=ARTICLE.hidden, num_layers=ARTICLE.layers)
        settings["count"] = lstm.params.flat.size
    return transformer.training_step(getattr(transformer, kind)(**settings), size, device)


def steps(suite, whos, device="cpu"):
    """What makes each contender's training step."""
    size = suite.size
    makers = {(cell, who): partial(peers.training_step, cell, who, size, device) for cell, who in keys(whos)}
    return makers | {key: partial(transformer, kind, size, device) for key, kind in TRANSFORMERS.items()}


def layers(make, suite, whos):
    """What makes each contender's function by `peers.training` or `peers.inference`."""
    return {(cell, who): partial(peers.alone, make, suite.size.shape(cell), who) for cell, who in keys(whos)}


@pytest.mark.parametrize(("case", "who"), [*keys(STEPPING), *TRANSFORMERS])
def test_training_step(case, who, contest, suite):
    contest(ratios.STEP, case, who, steps(suite, STEPPING))


@pytest.mark.parametrize(("case", "who"), keys(LAYERS))
def test_layers(case, who, contest, suite):
    contest("forward+backward", case, who, layers(peers.training, suite, LAYERS))


@pytest.mark.parametrize(("case", "who"), keys(INFERENCE))
def test_inference(case, who, contest, suite):
    contest("inference", case, who, layers(peers.inference, suite, INFERENCE))


@pytest.mark.parametrize(("case", "who"), [*keys(ON_GPU), *TRANSFORMERS])
def test_training_step_on_gpu(case, who, contest, suite):
    contest(ratios.STEP_CUDA, case, who, steps(suite, ON_GPU, "cuda"), device="cuda")


@pytest.mark.parametrize(("case", "who"), keys(ON_GPU))
def test_inference_on_gpu(case, who, contest, suite):
    contest("inference on the GPU", case, who, layers(peers.inference_on_gpu, suite, ON_GPU), device="cuda")
