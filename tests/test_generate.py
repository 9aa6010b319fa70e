"""Sampling and generation: the distributions that are drawn from, seeds, prompts, and runs loaded from files."""

import inspect
import math

import numpy as np
import pytest

import fastlstm
from fastlstm import generate
from fastlstm.generate import Run, Sampler
from fastlstm.models.series import SequenceRegressor
from fastlstm.text import CharTokenizer, WordTokenizer, prepare
from fastlstm.training import checkpoint
from fastlstm.training.checkpoint import CheckpointError

TEXT = "to be, or not to be: that is the question.\n" * 60
LOGITS = np.log(np.array([0.4, 0.05, 0.3, 0.05, 0.2])).astype(np.float32)


def model(vocab_size, **changes):
    options = {"cell": "lstm", "hidden_size": 8, "num_layers": 1, "seed": 1, **changes}
    return fastlstm.LanguageModel(vocab_size, **options)


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer.from_text(TEXT)


@pytest.fixture(scope="module")
def run(tokenizer):
    return Run(model(tokenizer.vocab_size), tokenizer)


def shares(count=4000, **options):
    """How often each token is drawn."""
    sampler = Sampler(seed=0, **options)
    return np.bincount([sampler.draw(LOGITS) for _ in range(count)], minlength=len(LOGITS)) / count


def odds(*values):
    return np.array(values) / sum(values)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, odds(0.4, 0.05, 0.3, 0.05, 0.2)),
        ({"temperature": 0.5}, odds(0.16, 0.0025, 0.09, 0.0025, 0.04)),
        ({"temperature": 1e9}, odds(1, 1, 1, 1, 1)),
        ({"temperature": 0}, odds(1, 0, 0, 0, 0)),
        ({"temperature": 1e-300}, odds(1, 0, 0, 0, 0)),
        ({"temperature": 1e-9}, odds(1, 0, 0, 0, 0)),
        ({"top_k": 1}, odds(1, 0, 0, 0, 0)),
        ({"top_k": 3}, odds(0.4, 0, 0.3, 0, 0.2)),
        ({"top_k": 4}, odds(0.4, 0.05, 0.3, 0, 0.2)),  # of equals, the lower number
        ({"top_k": 99}, odds(0.4, 0.05, 0.3, 0.05, 0.2)),
        ({"top_p": 1.0}, odds(0.4, 0.05, 0.3, 0.05, 0.2)),
        ({"top_p": 0.3}, odds(1, 0, 0, 0, 0)),
        ({"top_p": 0.5}, odds(0.4, 0, 0.3, 0, 0)),
        ({"top_p": 0.8}, odds(0.4, 0, 0.3, 0, 0.2)),
        ({"top_k": 3, "top_p": 0.7}, odds(0.4, 0, 0.3, 0, 0)),
        ({"top_p": 0.75, "temperature": 0.5}, odds(0.16, 0, 0.09, 0, 0)),
    ],
)
def test_what_is_drawn(options, expected):
    found = shares(**options)
    assert ((found > 0) == (expected > 0)).all()
    np.testing.assert_allclose(found, expected, atol=4 * math.sqrt(0.25 / 4000))


def test_the_whole_range_of_fractions_is_served():
    sampler = Sampler(seed=0)
    for raw, token in [(0, 0), (2**64 - 1, 4)]:
        sampler._counter = type("Counter", (), {"random_raw": lambda self, raw=raw: raw})()
        assert sampler.draw(LOGITS) == token
        # The last tokens cannot be drawn, whatever the rounding.
        assert sampler.draw(np.array([-np.inf, 0.3, 0.1, -np.inf], np.float32)) == (1 if token == 0 else 2)


def test_draws_come_from_a_counter():
    """The definition: the upper 53 bits of the n-th number of Philox decide the n-th token."""
    numbers = (np.random.Philox(key=7).random_raw(50) >> 11) * 2.0**-53
    sums = np.cumsum(np.exp(LOGITS.astype(float)))
    expected = np.searchsorted(sums, numbers * sums[-1], side="right")
    sampler = Sampler(seed=7)
    assert [sampler.draw(LOGITS) for _ in range(50)] == expected.tolist()


def test_logits_that_are_not_finite():
    for logit in (np.nan, np.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(FloatingPointError, match=r"not finite .*token 1"):
                Sampler(temperature).draw(np.array([0.0, logit, 1.0], np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: expected a number from 0, got -1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k is 0; expected at least 1"),
        ({"top_p": 0.0}, "top_p: expected a probability"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"seed": 2**64}, "seed"),
        ({"length": -1}, "length: expected at least 0 tokens, got -1"),
        ({"temperature": -1.5}, "temperature: expected a number from 0, got -1.5"),
    ],
)
def test_bad_options(run, options, message):
    with pytest.raises(ValueError, match=message):
        run.stream("to", **options)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("temperature", ["1", None, True, 1j]),
        ("top_k", [2.5, True, "2"]),
        ("top_p", ["0.5", True]),
        ("seed", [1.5, True, "1"]),
        ("length", [2.5, True, None]),
    ],
)
def test_options_of_the_wrong_kind(run, option, values):
    for value in values:
        with pytest.raises(TypeError, match=f"{option} is {value!r}.*; expected an? "):
            run.stream("to", **{option: value})


def test_numbers_may_come_from_numpy(run):
    options = (np.int64(9), np.float32(0.5), np.int8(2), np.float64(1), np.uint64(3))
    assert run.generate("to", *options) == run.generate("to", 9, 0.5, 2, 1.0, 3)


def test_the_same_seed_is_the_same_text(run):
    text = run.generate("to be", 50, seed=3)
    assert len(text) == 50
    assert text == run.generate("to be", 50, seed=3)
    assert text != run.generate("to be", 50, seed=4)
    assert text[:20] == run.generate("to be", 20, seed=3)
    assert run.generate("to be", 50) != run.generate("to be", 50)
    assert run.generate("to be", 0) == ""
    assert run.generate("to be", 30, temperature=0) == run.generate("to be", 30, top_k=1)


def test_the_stream_is_the_text(run):
    pieces = run.stream("to be", 50, seed=3)
    assert not isinstance(pieces, str)
    assert next(pieces) == run.generate("to be", 1, seed=3)
    assert "".join(pieces) == run.generate("to be", 50, seed=3)[1:]


def test_the_model_reads_the_prompt_and_then_what_it_wrote(run, monkeypatch):
    read = []

    class Spy(fastlstm.Stream):
        def __call__(self, token, *arguments, **options):
            read.append(token)
            return super().__call__(token, *arguments, **options)

    monkeypatch.setattr(generate, "Stream", Spy)
    text = run.generate("not be", 9, seed=3)
    assert run.tokenizer.decode(read) == "not be" + text[:-1]


def test_an_empty_prompt_is_a_line_start(run):
    assert run.generate("", 20, seed=3) == run.generate("\n", 20, seed=3)
    without_lines = Run(model(3), CharTokenizer("abc"))
    assert without_lines.generate("", 20, seed=3) == without_lines.generate("a", 20, seed=3)


def test_unknown_characters_are_named(run):
    with pytest.raises(ValueError, match=r"'\$'.*'X'"):
        run.stream("to $ be X")


def test_words_join_the_prompt():
    words = WordTokenizer.from_text(TEXT)
    run = Run(model(words.vocab_size), words)
    text = run.generate("to", 1, temperature=0)
    assert words.encode("to" + text).size == 2
    assert run.generate(" ", 5, seed=1) == run.generate("", 5, seed=1)


class Halves:
    """A tokenizer whose letters come in two tokens, as byte pairs do."""

    def encode(self, text):
        return np.array([number for letter in text for number in divmod(ord(letter) - 97, 2)], np.int32)

    def decode_stream(self):
        class Decoder:
            held = None

            def push(self, token):
                if self.held is None:
                    self.held = token
                    return ""
                letter, self.held = chr(97 + 2 * self.held + token), None
                return letter

            def flush(self):
                return "" if self.held is None else "?"

        return Decoder()


def test_what_is_held_back_comes_at_the_end():
    run = Run(model(2), Halves())
    assert len(run.generate("ab", 4, seed=0)) == 2
    assert run.generate("ab", 5, seed=0)[-1] == "?"
    assert len(list(run.stream("ab", 5, seed=0))) == 3


def test_only_language_models_generate(tokenizer):
    regressor = SequenceRegressor(2, 1, hidden_size=4, num_layers=1)
    with pytest.raises(TypeError, match="this is a SequenceRegressor"):
        Run(regressor).generate("a")
    with pytest.raises(TypeError, match="only a LanguageModel with a tokenizer"):
        Run(model(3)).generate("a")


def test_the_weights_are_read_anew(tokenizer):
    run = Run(model(tokenizer.vocab_size), tokenizer)
    before = run.generate("to", 30, seed=0)
    run.model.load_state_dict(model(tokenizer.vocab_size, seed=9).state_dict())
    assert run.generate("to", 30, seed=0) != before


def test_load(tmp_path):
    tokenizer, train, valid = prepare(TEXT, batch_size=4, seq_len=16)
    trained = model(tokenizer.vocab_size)
    trainer = fastlstm.Trainer(trained, fastlstm.Adam(lr=0.02), checkpoint_dir=tmp_path, tokenizer=tokenizer, progress=False)
    trainer.fit(train, valid, epochs=6)
    text = Run(trained, tokenizer).generate("to be", 40, seed=1)
    for path in (tmp_path, tmp_path / checkpoint.LAST, trainer.save(tmp_path / "copy.safetensors")):
        run = fastlstm.load(path)
        assert run.path == (tmp_path / checkpoint.BEST if path == tmp_path else path)
        assert run.generate("to be", 40, seed=1) == text
        assert run.model.config == trained.config
        assert run.history == trainer.history
    assert len(set(text) & set("to be")) > 3


def test_load_takes_the_best(tmp_path):
    tokenizer, train, valid = prepare(TEXT, batch_size=4, seq_len=16)
    untrained = model(tokenizer.vocab_size)
    trainer = fastlstm.Trainer(untrained, checkpoint_dir=tmp_path, tokenizer=tokenizer, progress=False)
    losses = iter([1.0, 2.0])
    trainer._judge = lambda data, stop: {"loss": next(losses), "count": 1}
    trainer.fit(train, valid, epochs=2)
    assert len(fastlstm.load(tmp_path).history) == 1
    assert len(fastlstm.load(tmp_path / checkpoint.LAST).history) == 2


def test_load_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run"):
        fastlstm.load(tmp_path / "missing")
    (tmp_path / "other").write_text("text")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        fastlstm.load(tmp_path / "other")


def test_the_signature_is_the_promised_one():
    names = list(inspect.signature(Run.generate).parameters)
    assert names == ["self", "prompt", "length", "temperature", "top_k", "top_p", "seed"]
    defaults = [p.default for p in inspect.signature(Run.generate).parameters.values()][3:]
    assert defaults == [1.0, None, None, None]
