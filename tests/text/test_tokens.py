"""Tokenizers: exact round trips, sensible spaces, and errors that name what is wrong."""

import functools
import importlib
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.text import BPETokenizer, CharTokenizer, UnknownCharacterError, WordTokenizer, bpe, prepare, tokenizer_from_config

PLAY = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak. What's the matter with "the others", we'd ask?
"""


def streamed(tokenizer, ids):
    decoder = tokenizer.decode_stream()
    return "".join([decoder.push(int(i)) for i in ids]) + decoder.flush()


@pytest.fixture(scope="module")
def byte_pairs():
    pytest.importorskip("tokenizers")
    return BPETokenizer.from_text(PLAY * 5, vocab_size=300)


# --- characters


@given(st.text(st.characters(), min_size=1))
def test_characters_come_back_exactly(sample):
    tokenizer = CharTokenizer.from_text(sample)
    ids = tokenizer.encode(sample)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == sample
    assert tokenizer.vocab_size == len(set(sample)) == ids.max() + 1
    assert tokenizer.config["symbols"] == "".join(sorted(set(sample)))


def test_character_ids_are_places_in_the_symbols():
    tokenizer = CharTokenizer("ba\n😀")
    assert tokenizer.encode("a😀b\n").tolist() == [1, 3, 0, 2]
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(np.array([3, 0], np.uint8)) == "😀b"


def test_unknown_characters_are_named_once_with_place_and_what_is_known():
    tokenizer = CharTokenizer("abc")
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer.encode("ab€a\x07c€😀")
    message = str(caught.value)
    assert message.count("€") == 1
    for part in ("'€' (U+20AC)", "'\\x07' (U+0007)", "'😀' (U+1F600)", "position 2", "3 characters 'abc'"):
        assert part in message
    assert isinstance(caught.value, ValueError)


def test_at_most_ten_unknown_characters_are_named():
    with pytest.raises(UnknownCharacterError, match=r"'j' \(U\+006A\) and 16 more \(first at position 0\)"):
        CharTokenizer("0").encode("abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(UnknownCharacterError, match=r"knows the 300 characters .{1,130}$"):
        CharTokenizer("".join(map(chr, range(400, 700)))).encode("a")


@pytest.mark.parametrize("symbols", ["", "abca", None, ["a"]])
def test_symbols_are_checked(symbols):
    with pytest.raises(ValueError, match="symbols"):
        CharTokenizer(symbols)


# --- words


def test_words_are_runs_of_letters_and_apostrophes():
    tokenizer = WordTokenizer.from_text("Don't stop, naïve ’tis 42\t!\n\nnow", min_count=1)
    ids = tokenizer.encode("Don't stop, naïve ’tis 42\t!\n\nnow")
    words = tokenizer.config["words"]
    assert [words[i] for i in ids] == [
        "Don't",
        "stop",
        ",",
        "naïve",
        "’tis",
        "4",
        "2",
        "\t",
        "!",
        "\n",
        "\n",
        "now",
    ]


def test_words_seen_once_are_unknown():
    tokenizer = WordTokenizer.from_text("a b a c b a d")
    assert tokenizer.config["words"] == ["<unk>", "a", "b"]
    assert tokenizer.encode("a d c b zebra €").tolist() == [1, 0, 0, 2, 0, 0]
    assert tokenizer.encode("  ").shape == (0,)


def test_word_ids_do_not_depend_on_the_order_of_the_text():
    one = WordTokenizer.from_text("x y z x y z q q q")
    assert one.config == WordTokenizer.from_text(["z y x q q", " z y x q"]).config
    assert one.config["words"] == ["<unk>", "q", "x", "y", "z"]


@pytest.mark.parametrize(
    "line",
    [
        PLAY,
        "To be, or not to be: that is the question.",
        'He said "no (never) again" and "yes".\n"Who?" she asked.',
        "the King--who is 47--pays $5 [at once]; good-night!",
        '"not closed\n"opened again" here',
        "and/or some_name",
    ],
)
def test_words_are_spaced_as_in_english(line):
    tokenizer = WordTokenizer.from_text(line, min_count=1)
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == line


@given(st.text(st.sampled_from("ab'1 .,\"(\n-"), max_size=30))
def test_decoded_words_are_the_same_tokens_again(line):
    tokenizer = WordTokenizer.from_text("ab'1.,\"(\n-" + line, min_count=1)
    again = tokenizer.decode(tokenizer.encode(line))
    # A letter run is glued to nothing that could join it, so at most spaces differ.
    assert tokenizer.encode(again).tolist() == tokenizer.encode(line).tolist()


def test_word_tokenizer_checks_its_words():
    for words in (["a", "b"], ["<unk>"], [], "<unk>", ["<unk>", "a", "a"]):
        with pytest.raises(ValueError, match="words"):
            WordTokenizer(words)
    with pytest.raises(ValueError, match="often enough"):
        WordTokenizer.from_text("every word once")
    with pytest.raises(ValueError, match="min_count"):
        WordTokenizer.from_text("a a", min_count=0)


# --- byte pairs


@given(sample=st.text())
def test_byte_pairs_come_back_exactly(byte_pairs, sample):
    ids = byte_pairs.encode(sample)
    assert ids.dtype == np.int32
    assert byte_pairs.decode(ids) == streamed(byte_pairs, ids) == sample


def test_byte_pairs_stream_only_whole_characters(byte_pairs):
    ids = byte_pairs.encode("☃😀")
    decoder = byte_pairs.decode_stream()
    pushed = [decoder.push(int(i)) for i in ids]
    assert pushed == ["", "", "☃", "", "", "", "😀"]
    assert decoder.flush() == ""
    assert streamed(byte_pairs, ids[:2]) == byte_pairs.decode(ids[:2]) == "\ufffd"


def test_byte_pairs_are_fewer_than_characters_and_reproducible(byte_pairs):
    assert byte_pairs.vocab_size == 300
    assert len(byte_pairs.encode(PLAY)) < 0.8 * len(PLAY)
    assert BPETokenizer.from_text(PLAY * 5, vocab_size=300).config == byte_pairs.config


def test_byte_pairs_agree_with_the_package_itself(byte_pairs):
    package = importlib.import_module("tokenizers")
    own = package.Tokenizer.from_str(byte_pairs.config["json"])
    sample = PLAY + "naïve ☃ 😀\t\x00 \n\n  end  "
    ids = byte_pairs.encode(sample)
    assert own.encode(sample).ids == ids.tolist()
    assert own.decode(ids.tolist(), skip_special_tokens=False) == byte_pairs.decode(ids)
    assert {*bpe._byte_of_symbol()} == {*package.pre_tokenizers.ByteLevel.alphabet()}


@given(sample=st.text(st.sampled_from("ab,1 \n\t\u3000\x1c"), max_size=60), size=st.integers(1, 10))
def test_byte_pairs_of_chunks_are_those_of_the_whole(byte_pairs, sample, size):
    chunks = list(bpe._word_chunks(sample, size))
    assert "".join(chunks) == sample
    assert all(chunks)
    ids = [i for chunk in chunks for i in byte_pairs.encode(chunk)]
    assert ids == byte_pairs.encode(sample).tolist()


def test_byte_pairs_refuse(byte_pairs):
    package = importlib.import_module("tokenizers")
    with pytest.raises(UnknownCharacterError, match=r"U\+D800"):
        byte_pairs.encode("a\ud800")
    with pytest.raises(ValueError, match="vocab_size: expected at least 256"):
        BPETokenizer.from_text(PLAY, vocab_size=255)
    with pytest.raises(ValueError, match="json: not a tokenizer"):
        BPETokenizer("{}")
    other = package.Tokenizer(package.models.WordLevel({"two words": 0}, unk_token="two words"))
    with pytest.raises(ValueError, match="byte-level"):
        BPETokenizer(other.to_str())


WORD_CHUNKS = bpe._word_chunks
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
DIGITS = [{"type": "Digits", "individual_digits": each} for each in (True, False)]


@pytest.mark.parametrize(
    "cuts", [[DIGITS[0], BYTES], [DIGITS[1], BYTES], [*DIGITS, BYTES], [BYTES], [DIGITS[0], {**BYTES, "use_regex": False}]]
)
@given(sample=st.one_of(st.text(max_size=40), st.text(st.sampled_from("ab1\u0662\xb2' \n\t\u3000"), max_size=60)))
def test_byte_pairs_of_digits_apart(byte_pairs, cuts, sample):
    found = json.loads(byte_pairs.config["json"])
    found["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": cuts}
    text = json.dumps(found)
    tokenizer, own = BPETokenizer(text), importlib.import_module("tokenizers").Tokenizer.from_str(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_word_chunks", functools.partial(WORD_CHUNKS, size=3))
        ids = tokenizer.encode(sample)
    assert ids.tolist() == own.encode(sample).ids
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == sample


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("model", {"continuing_subword_prefix": "##"}),  # the package panics over these two,
        (None, {"truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 3, "direction": "Right"}}),
        ("model", {"end_of_word_suffix": "##"}),
        ("model", {"dropout": 0.5}),
        ("model", {"merges": {}}),
        ("model", {"vocab": []}),
        (None, {"padding": {"strategy": {"Fixed": 10**9}}}),  # and fills all memory over this
        (None, {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}}),
        (None, {"pre_tokenizer": {"type": "Split"}}),
        (None, {"pre_tokenizer": None}),  # characters that are no bytes would be lost
        (None, {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}),
        (None, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}),
        (None, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, BYTES]}}),
        (None, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}}),
        (None, {"pre_tokenizer": {**BYTES, "add_prefix_space": True}}),
        (None, {"normalizer": {"type": "NFC"}}),
        (
            None,
            {
                "added_tokens": [
                    {
                        "id": 256,
                        "content": "ab",
                        "single_word": False,
                        "lstrip": True,
                        "rstrip": False,
                        "normalized": False,
                        "special": False,
                    }
                ]
            },
        ),
        (None, {"unknown": 1}),
    ],
)
def test_byte_pairs_refuse_what_would_cut_pad_or_rewrite_a_text(byte_pairs, part, changes):
    found = json.loads(byte_pairs.config["json"])
    (found if part is None else found[part]).update(changes)
    with pytest.raises(ValueError, match=f"byte-level BPE: .*{next(iter(changes))}"):
        BPETokenizer(json.dumps(found))


def test_words_that_hold_spaces_are_not_cut(byte_pairs, monkeypatch):
    found = json.loads(byte_pairs.config["json"])
    found["pre_tokenizer"] = {**BYTES, "use_regex": False}
    found["model"]["vocab"]["aĠ"], found["model"]["merges"] = byte_pairs.vocab_size, [["a", "Ġ"]]
    tokenizer = BPETokenizer(json.dumps(found))
    monkeypatch.setattr(bpe, "_word_chunks", functools.partial(WORD_CHUNKS, size=1))
    assert tokenizer.encode("a a a").tolist() == [300, 300, found["model"]["vocab"]["a"]]


def test_panics_of_the_package_are_errors_like_others(byte_pairs, monkeypatch):
    panic = type("PanicException", (BaseException,), {})

    class Package:
        def encode(self, text):
            raise self.error

    monkeypatch.setattr(byte_pairs, "_tokenizer", Package())
    Package.error = panic("slice index starts at 1 but ends at 0")
    with pytest.raises(ValueError, match="tokenizers' failed on it: slice index"):
        byte_pairs.encode("a")
    for error in (KeyboardInterrupt, MemoryError):  # no fault of the text
        Package.error = error()
        with pytest.raises(error):
            byte_pairs.encode("a")


def test_byte_pairs_without_the_package_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for make in (lambda: BPETokenizer.from_text(PLAY), lambda: BPETokenizer("{}"), lambda: prepare(PLAY, "bpe")):
        with pytest.raises(ImportError, match=re.escape("pip install fastlstm[bpe]")):
            make()
    prepare(PLAY * 100, "word", batch_size=4)  # the others need nothing


# --- all kinds


@pytest.fixture(params=["char", "word", "bpe"])
def tokenizer(request):
    if request.param == "char":
        return CharTokenizer.from_text(PLAY)
    return WordTokenizer.from_text(PLAY) if request.param == "word" else request.getfixturevalue("byte_pairs")


def test_config_holds_all_of_a_tokenizer(tokenizer):
    config = json.loads(json.dumps(tokenizer.config))
    again = tokenizer_from_config(config)
    assert type(again) is type(tokenizer)
    assert again.config == tokenizer.config
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode(PLAY), tokenizer.encode(PLAY))


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"expected 0 \.\.\. {tokenizer.vocab_size - 1}, got"):
            tokenizer.decode([0, wrong])
        with pytest.raises(ValueError, match=f"got {wrong}"):
            tokenizer.decode_stream().push(wrong)
    for wrong in ([0.5], [[0]], 3, [True]):
        with pytest.raises(ValueError, match="1-d array of integers"):
            tokenizer.decode(wrong)
    with pytest.raises(TypeError, match="ids is None; expected an array"):
        tokenizer.decode(None)


def test_ids_on_a_device_are_decoded():
    class Lying:
        """As CuPy's arrays: `get` brings it to host memory, and nothing else does."""

        device = 0

        def get(self):
            return np.array([1, 0])

    assert CharTokenizer("ba").decode(Lying()) == "ab"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "config.type is None; expected one of 'CharTokenizer', 'WordTokenizer', 'BPETokenizer'"),
        ({"type": "Other"}, "config.type is 'Other'"),
        ({"type": ["CharTokenizer"]}, "config.type is "),
        ({"type": "CharTokenizer", "words": []}, "config lacks symbols and has the unknown 'words'"),
        ({"type": "CharTokenizer", "symbols": 7}, "config.symbols is 7; expected text"),
        ({"type": "WordTokenizer", "words": {"<unk>": 0}}, "config.words is .*; expected a list"),
        ({"type": "WordTokenizer", "words": ["<unk>", ["a"]]}, r"config.words\[1\] is \['a'\]; expected text"),
        (7, "config is 7; expected an object"),
    ],
)
def test_configs_that_are_none(config, says):
    with pytest.raises(ValueError, match=says):
        tokenizer_from_config(config)
