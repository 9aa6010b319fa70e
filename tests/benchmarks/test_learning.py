"""Learning runs of small size: they are resumed and collected; memory spans and generated text are measured."""

import json
import math

import numpy as np
import pytest

from benchmarks.learning import collect, copying, generation, learn, memory_span, recall, runs, trained

LINES = "The quick brown fox jumps over the lazy dog.\nTo be or not to be, that is the question, or is it not?\n"
SMALL = {"hidden_size": 8, "embedding_size": 8, "num_layers": 1, "batch_size": 4, "seq_len": 20, "vocab_size": 270}


@pytest.fixture(scope="module")
def text():
    """Return some hundred lines of random words."""
    words = LINES.split()
    draw = np.random.default_rng(0)
    return "\n".join(" ".join(draw.choice(words, 8)) for _ in range(150)) + "\nTo be or not to be\n"


@pytest.fixture
def small(text, tmp_path, monkeypatch):
    """Return a function that makes the settings of a run by its name, with a small text and a small model."""
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")

    def make(name, epochs=2):
        return runs.settings(name, epochs=epochs) | SMALL | {"text": str(file)}

    return make


def command_line(monkeypatch):
    """Pass small batches to the command, which would use the preset's sizes."""
    plain = learn.cli.main

    def main(argv):
        begun = "--resume" not in argv
        more = [word for key in ("batch_size", "seq_len") for word in (f"--{key.replace('_', '-')}", str(SMALL[key]))]
        return plain([*argv, *more] if begun else argv)

    monkeypatch.setattr(learn.cli, "main", main)


def test_a_runs_name_says_what_it_is():
    assert runs.settings("bpe-gru")["vocab_size"] == 1024
    assert runs.settings("char-lstm-512")["embedding_size"] == 512
    assert runs.settings("char-lstm-3-layers")["num_layers"] == 3
    large = runs.settings("char-transformer-large")
    assert (large["size"], large["dropout"], large["lr"], large["batch_size"]) == ("large", 0.2, 0.001, 64)
    for name in ("char-lstm-large", "char-transformer-512", "letters-lstm", "char"):
        with pytest.raises(ValueError, match="is no run"):
            runs.settings(name)


@pytest.mark.parametrize("name", ["char-gru", "word-lstm"])
def test_a_run_of_fastlstm_goes_on_and_is_collected(name, small, tmp_path, monkeypatch):
    command_line(monkeypatch)
    folder = tmp_path / name
    learn.train(folder, small(name, epochs=1))
    learn.train(folder, small(name, epochs=3))
    before = (folder / "last.safetensors").stat().st_mtime_ns
    learn.train(folder, small(name, epochs=3))  # done: the files do not change
    assert (folder / "last.safetensors").stat().st_mtime_ns == before
    assert learn.timed(folder) > 0
    found = collect.summary(folder, "Quiet.")
    assert found["epochs"] == len(found["valid_loss"]) == 3
    assert found["hours"] == pytest.approx(3 * found["steps_per_epoch"] * found["step"]["seconds"] / 3600)
    if name == "char-gru":
        assert found["best_bits_per_character"] == pytest.approx(found["best_loss"] / math.log(2))
        assert found["sample"].startswith("To be or not to be")
    else:
        assert found["best_bits_per_character"] is None  # <unk> cannot give its word back


def test_bits_per_character_are_of_characters_not_of_byte_pairs(small, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    command_line(monkeypatch)
    learn.train(tmp_path / "bpe-rnn", small("bpe-rnn", epochs=1))
    found = collect.summary(tmp_path / "bpe-rnn")
    characters = runs.prepare(found["settings"]).valid.characters_per_token
    assert characters > 1.1
    assert found["best_bits_per_character"] == pytest.approx(found["best_loss"] / math.log(2) / characters)


@pytest.fixture
def decoder(small, monkeypatch):
    """Make Transformers so small that they train in a second, on one thread: more threads take longer. Return the module."""
    torch = pytest.importorskip("torch")
    from benchmarks.learning import learn_transformer
    from benchmarks.peers.transformer import Decoder

    def make(settings, vocabulary):
        return Decoder(vocabulary, settings["seq_len"], width=16, layers=1, heads=2, inner=16, dropout=settings["dropout"])

    monkeypatch.setattr(learn_transformer, "decoder", make)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield learn_transformer
    torch.set_num_threads(threads)


def test_a_stopped_transformer_ends_like_one_that_was_not_stopped(small, decoder, tmp_path):
    wanted = small("char-transformer-large", epochs=3)
    learn.train(tmp_path / "whole", wanted)
    learn.train(tmp_path / "stopped", wanted | {"epochs": 1})
    learn.train(tmp_path / "stopped", wanted)
    whole, stopped = (runs.history(tmp_path / name) for name in ("whole", "stopped"))
    assert [one["valid_loss"] for one in whole] == [one["valid_loss"] for one in stopped]
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert collect.summary(tmp_path / "whole")["sample"].startswith("To be or not to be")


def test_patience_ends_a_run(small, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    losses = [3.0, 2.0, 2.1, 2.2]
    (folder / "history.jsonl").write_text("".join(json.dumps({"valid_loss": loss}) + "\n" for loss in losses))
    assert runs.done(folder, {"epochs": 50, "patience": 2})
    assert not runs.done(folder, {"epochs": 50, "patience": 3})
    assert runs.done(folder, {"epochs": 4, "patience": 3})


def test_windows_that_overlap_count_every_target_once(decoder):
    from fastlstm.data import TokenStream

    valid = TokenStream(np.arange(3 * 47), 3, 20, keep_remainder=True)
    for context in (0, 10):
        parts = list(decoder.overlapping(valid, 20, context))
        targets = np.concatenate([targets[known:] for _, targets, known in parts])
        np.testing.assert_array_equal(targets, np.concatenate([targets for _, targets in valid]))
        assert all(len(ids) <= 20 and (ids[1:] == targets[:-1]).all() for ids, targets, _ in parts)


@pytest.mark.parametrize("name", ["char-rnn", "char-lstm", "char-transformer"])
def test_models_of_both_kinds_have_one_interface(name, small, decoder, tmp_path, monkeypatch):
    """Losses are of the held-out text, gradients fit differences of losses, and drawn text depends on the seed alone."""
    command_line(monkeypatch)
    folder = tmp_path / name
    learn.train(folder, small(name, epochs=2))
    ids, model = memory_span.held_out(folder)
    window = memory_span.before(ids, np.array([40, 50]), 12)
    np.testing.assert_array_equal(window[:, 0], ids[28:40])
    losses = model.losses(window, ids[[40, 50]])
    vocabulary = model.tokenizer.vocab_size
    every = np.array([model.losses(window[:, :1], np.array([token]))[0] for token in range(vocabulary)])
    assert np.exp(-every).sum() == pytest.approx(1, abs=1e-5)
    assert losses[0] == pytest.approx(every[ids[40]], abs=1e-5)
    norms = model.input_gradients(window, ids[[40, 50]])
    assert norms.shape == (12, 2)
    assert (norms[-1] > norms[0]).all()
    alone = model.input_gradients(window[:, 1:], ids[[50]])
    np.testing.assert_allclose(alone[:, 0], norms[:, 1], rtol=1e-3, atol=1e-7)
    likeliest = model.draw(ids[:5], 12, 1, 0, 1e-9)[:, 0]  # 17 tokens: within the window
    for k in (0, 5, 11):
        seen = np.concatenate([ids[:5], likeliest[:k]])[:, None]
        losses = [model.losses(seen, np.array([token]))[0] for token in range(vocabulary)]
        assert losses[likeliest[k]] == pytest.approx(min(losses), abs=1e-5)
    drawn = model.draw(ids[:5], 30, 4, 7, 1.0)
    assert drawn.shape == (30, 4)
    assert not (drawn[:, :1] == drawn).all()
    np.testing.assert_array_equal(drawn, model.draw(ids[:5], 30, 4, 7, 1.0))
    whole = model.losses(np.concatenate([window[:, ::-1], window])[:20], ids[[40, 50]])
    state = model.after(window[:, ::-1])
    found = model.losses(window[:8], ids[[40, 50]], state)
    assert state is None or np.allclose(found, whole, atol=1e-5)
    monkeypatch.setattr(memory_span, "BACK", 15)
    found = memory_span.context(model, ids, 50, (1, 3, 10))
    assert len(found["values"]) == len(found["tokens"]) == 3
    assert memory_span.gradient(model, ids, 8, 15)["values"][0] == 1


def test_gradients_are_those_of_the_loss(small, tmp_path, monkeypatch):
    command_line(monkeypatch)
    folder = tmp_path / "char-gru"
    learn.train(folder, small("char-gru", epochs=1))
    ids, _ = memory_span.held_out(folder)
    model = trained.Recurrent(folder)
    window, target = memory_span.before(ids, np.array([40]), 6), ids[[40]]
    norms, plain = model.input_gradients(window, target)[:, 0], model.embedding
    for step in (5, 2):
        squares = 0.0
        for unit in range(plain.shape[1]):
            ends = []
            for sign in (1, -1):
                x = plain[window].copy()
                x[step, 0, unit] += sign * 1e-2
                out, _ = model.layers(x)
                ends.append(trained.cross_entropy(out[-1] @ model.weight.T + model.bias, target)[0][0])
            squares += ((ends[0] - ends[1]) / 2e-2) ** 2
        assert norms[step] == pytest.approx(math.sqrt(squares), rel=2e-2)


def test_the_span_of_a_gradient_is_where_a_hundredth_is_left():
    class Known:
        def input_gradients(self, ids, targets):
            return 0.5 ** np.arange(len(ids))[::-1, None] * np.ones(len(targets))

    found = memory_span.gradient(Known(), np.arange(100), 5, 20)
    assert found["span"] == 6  # 2^-6 is above a hundredth, 2^-7 below
    assert found["values"][:3] == [1, 0.5, 0.25]


def test_distances_of_recall_grow_as_losses_fall():
    ids, symbols = recall.sequences(np.random.default_rng(0), np.array([1, 5, 9]), 9)
    assert [ids[9 - distance, k] for k, distance in enumerate((1, 5, 9))] == symbols.tolist()
    assert ((ids < recall.SYMBOLS).sum(axis=0) == 1).all()
    lessons = recall.Lessons(0, 1000, 12)
    for _ in lessons:
        lessons.add_loss(0.0)
    assert (lessons.reach, lessons.taken) == (12, 4 * recall.PATIENT)  # 5, 7, 10, 12
    lessons = recall.Lessons(0, 30, 12)
    for _ in lessons:
        lessons.add_loss(2.0)
    assert (lessons.reach, lessons.taken) == (5, 30)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_small_models_learn_to_recall_and_to_copy(kind, monkeypatch):
    if kind == "transformer":
        pytest.importorskip("torch")
    monkeypatch.setattr(copying, "STEPS", 12)
    shares, taken = recall.accuracy(kind, 0, 400, 6, 64)
    assert shares[0] > 0.9
    assert taken <= 400
    found = copying.measure(kind, 150, 1, (1, 2))
    assert found["values"][0] > 0.9
    assert found["span"] >= 1


def test_targets_of_copying_are_the_ids_of_some_steps_before():
    ids, targets = copying.sequences(np.random.default_rng(0), 3, 2)
    np.testing.assert_array_equal(targets[3:], ids[:-3])
    assert (targets[:3] == copying.SYMBOLS).all()


def test_words_and_matches_of_samples():
    source = "the cat sat on the mat. it's warm"
    known = set(generation.words(source + " ."))
    assert generation.words("The cat's me") == ["the", "cat's"]
    shares, span, bound = generation.real_words([["the", "cat", "xyz"], ["xx", "the"], ["cat", "sat", "on"]], known)
    assert shares == [2 / 3, 1.0, 0.5]
    assert (span, bound) == (2, False)
    assert generation.real_words([["the", "cat"]], known)[1:] == (2, True)
    samples = ["xx cat sat yy", "zzz", "on the mat. it's warm", "t"]
    pieces = [[s[a:b] for a in range(len(s)) for b in range(a + 1, len(s) + 1)] for s in samples]
    expected = [max((len(piece) for piece in own if piece in source), default=0) for own in pieces]
    assert generation.longest_matches(samples, source).tolist() == expected == [9, 0, 21, 1]
    measured = generation.measure(["o be", " the cat sat qq on"], source, "t")
    assert measured["longest match"] == 12
    assert len(generation.pieces(source * 20, 5, 40)) == 5
