"""Splits, and texts made ready for training: what goes where, and that nothing of the validation part is learnt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlstm import text
from fastlstm.text import CharTokenizer, TextError, UnknownCharacterError, load_corpus, prepare, split_ids, token_stream

PLAY = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak. What's the matter with "the others", we'd ask?
"""


# --- splits


@given(st.integers(0, 500))
def test_tail_is_the_last_tenth(size):
    train, valid = split_ids(np.arange(size), "tail")
    assert len(train) == int(0.9 * size)
    assert np.concatenate([train, valid]).tolist() == list(range(size))


@given(size=st.integers(0, 500), batch_size=st.integers(1, 9))
def test_rows_set_aside_the_last_twentieth_of_each_row(size, batch_size):
    train, valid = split_ids(np.arange(size), "rows", batch_size)
    row = size // batch_size
    rows = np.arange(batch_size * row).reshape(batch_size, row)
    kept = int(0.95 * row)
    np.testing.assert_array_equal(train, rows[:, :kept].ravel())
    np.testing.assert_array_equal(valid, rows[:, kept:].ravel())


def test_a_stream_reads_the_split_rows_as_they_were_cut():
    train, valid = split_ids(np.arange(4000), "rows", batch_size=4)
    for part, offset in ((train, 0), (valid, 950)):
        data = token_stream_of(part)
        inputs = np.concatenate([x for x, _ in data])
        np.testing.assert_array_equal(inputs[0], np.arange(4) * 1000 + offset)
        assert (np.diff(inputs, axis=0) == 1).all()


def token_stream_of(ids):
    return text.TokenStream(ids, batch_size=4, seq_len=10, keep_remainder=True)


def test_split_refuses():
    with pytest.raises(ValueError, match=r"split: expected one of tail, rows, got 'head'"):
        split_ids(np.arange(10), "head")
    with pytest.raises(ValueError, match="batch_size"):
        split_ids(np.arange(10), "rows", 0)
    with pytest.raises(ValueError, match="1-d"):
        split_ids(np.zeros((2, 3)))


# --- prepare


@pytest.mark.parametrize("split", text.SPLITS)
@pytest.mark.parametrize("kind", text.TOKENIZERS)
def test_prepare_makes_all_that_training_needs(kind, split):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    tokenizer, train, valid = prepare(PLAY * 60, kind, split, batch_size=4, seq_len=20, vocab_size=280)
    for data in (train, valid):
        assert data.carries_state
        assert data.batch_size == 4
        for inputs, targets in data:
            assert 0 <= inputs.min() <= targets.max() < tokenizer.vocab_size
    assert len(train) > len(valid) > 0
    expected = {"char": 1.0, "word": None}.get(kind, train.characters_per_token)
    assert train.characters_per_token == expected
    if kind == "bpe":
        assert 1.2 < valid.characters_per_token < 4


def test_prepare_cuts_the_text_where_it_says():
    whole = load_corpus()[:20_000]
    tokenizer, train, valid = prepare(whole, "char", "tail", batch_size=1, seq_len=100)
    heard = tokenizer.decode(np.concatenate([x.ravel() for x, _ in train]))
    assert heard == whole[: len(heard)]
    assert 18_000 - 101 <= len(heard) <= 18_000
    assert tokenizer.decode(np.concatenate([x.ravel() for x, _ in valid])) == whole[18_000:-1]
    by_ids = split_ids(tokenizer.encode(whole), "rows", 8)
    _, *parts = prepare(whole, "char", "rows", batch_size=8, seq_len=100)
    for data, ids, keep in zip(parts, by_ids, (False, True), strict=True):
        same = text.TokenStream(ids, 8, 100, keep_remainder=keep)
        assert data.describe()["sha256"] == same.describe()["sha256"]


@pytest.mark.parametrize("split", text.SPLITS)
def test_words_and_byte_pairs_never_see_the_validation_text(split):
    pytest.importorskip("tokenizers")
    length, rows = 8_000, 4 if split == "rows" else 1
    share = 0.95 if split == "rows" else 0.9
    row = length // rows
    train = ("to be or not to be " * row)[: int(row * share)]
    valid = ("zyzzyva " * row)[: row - len(train)]
    whole = (train + valid) * rows
    words = prepare(whole, "word", split, batch_size=4, seq_len=5).tokenizer
    assert words.encode("zyzzyva").tolist() == [0]
    pairs = prepare(whole, "bpe", split, batch_size=4, seq_len=5).tokenizer
    assert len(pairs.encode("zyzzyva")) == 7
    assert len(pairs.encode("not")) < 3


def test_characters_of_the_validation_text_have_ids():
    tokenizer, _, valid = prepare("ab" * 500 + "€", batch_size=1, seq_len=10)
    assert tokenizer.config["symbols"] == "ab€"
    assert max(int(y.max()) for _, y in valid) == 2


def test_prepare_with_a_tokenizer_that_there_is():
    tokenizer = CharTokenizer("abc")
    assert prepare("abc" * 500, tokenizer, batch_size=2, seq_len=10).tokenizer is tokenizer
    with pytest.raises(UnknownCharacterError, match="'d'"):
        prepare("abcd" * 500, tokenizer, batch_size=2, seq_len=10)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"text": ""}, TextError, "at least one character"),
        ({"text": "short"}, TextError, "training part of the text: ids: 4 tokens are too few"),
        ({"text": "", "tokenizer": CharTokenizer("a")}, TextError, "0 tokens are too few"),
        ({"text": "", "split": "rows", "tokenizer": CharTokenizer("a")}, TextError, "0 tokens are too few"),
        ({"text": PLAY, "batch_size": 50, "seq_len": 1}, TextError, "validation part of the text"),
        ({"tokenizer": "letters"}, ValueError, "tokenizer: expected one of char, word, bpe, got 'letters'"),
        ({"split": "half"}, ValueError, "split"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seq_len": -1}, ValueError, "seq_len"),
        ({"tokenizer": "word", "min_count": 0}, ValueError, "min_count"),
    ],
)
def test_prepare_refuses(options, error, says):
    with pytest.raises(error, match=says):
        prepare(**{"text": PLAY * 60, "batch_size": 4, "seq_len": 20, **options})


def test_token_stream_counts_every_target():
    tokenizer = CharTokenizer.from_text(PLAY)
    data = token_stream(tokenizer, PLAY, batch_size=1, seq_len=64)
    assert data.num_tokens == len(PLAY) - 1
    assert data.characters_per_token == 1.0
    with pytest.raises(TextError, match="text: ids: 1 tokens are too few"):
        token_stream(tokenizer, "F", batch_size=1)
