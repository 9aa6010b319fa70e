"""``fastlstm train``: a run from its settings to its last lines, with samples on the way that show it learn.

Knows settings, texts, models and the trainer; the options themselves are in ``cli``.
"""

import argparse
import contextlib
import hashlib
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ..files import records, schema
from ..generate import Run
from ..models.language import LanguageModel
from ..optim import optimizers
from ..optim.optimizers import Adam
from ..training import checkpoint
from ..training.fit import UNLIMITED
from ..training.progress import clock, number, printable, write
from ..training.state import Callback
from ..training.trainer import Trainer
from ..version import __version__

DEFAULTS: dict[str, Any] = {
    "cell": "lstm",
    "hidden_size": 256,
    "num_layers": 2,
    "embedding_size": None,
    "dropout": 0.0,
    "tie_weights": False,
    "dtype": "float32",
    "device": "cpu",
    "tokens": "char",
    "vocab_size": 2048,
    "split": "tail",
    "batch_size": 64,
    "seq_len": 100,
    "lr": 0.002,
    "clip_norm": 1.0,
    "schedule": "constant",
    "seed": 0,
    "patience": None,
    "minutes": None,
    "epochs": None,
}
_MINUTES = 2.0
_BYTES = 256

_ARTICLE = {
    "hidden_size": 256,
    "num_layers": 2,
    "embedding_size": 256,
    "dropout": 0.0,
    "tie_weights": False,
    "dtype": "float32",
    "tokens": "char",
    "split": "tail",
    "batch_size": 64,
    "seq_len": 100,
    "lr": 0.001,
    "clip_norm": 1.0,
    "schedule": "constant",
    "epochs": 50,
}
PRESETS = {"article": _ARTICLE}
PRESET_HELP = (
    "article: the article's set-up (2 layers of 256, batches of 64 x 100, 50 epochs, Adam at 0.001, the last 10%% "
    "held out), on shakespeare if no TEXT is given; other options go before it"
)
# What the article's work is made of, and what decides how long a character takes.
_ARTICLE_CHARACTERS = 50 * 1_003_854
_ARTICLE_HOURS = {"rnn": 6, "lstm": 18, "gru": 14}
_ARTICLE_SHAPE = (
    "hidden_size",
    "num_layers",
    "embedding_size",
    "tie_weights",
    "dtype",
    "tokens",
    "batch_size",
    "seq_len",
)

SCHEDULES = ("constant", "cosine", "step", "plateau")

# What settings.json holds, which nothing but its table guards.
_SETTINGS = schema.table(
    {
        "version": schema.text,
        "preset": schema.optional(schema.choice(*PRESETS)),
        "text": schema.optional(schema.like(r"[^\0]+")),
        "text_sha256": schema.like("[0-9a-f]{64}"),
        "cell": schema.choice("lstm", "gru", "rnn"),
        "hidden_size": records.SIZE,
        "num_layers": records.SIZE,
        "embedding_size": records.SIZE,
        "dropout": schema.number(0, 1),
        "tie_weights": schema.flag,
        "dtype": schema.choice("float32", "float64", "bfloat16"),
        "device": records.DEVICE,
        "tokens": schema.choice("char", "word", "bpe"),
        "vocab_size": records.SIZE,
        "split": schema.choice("tail", "rows"),
        "batch_size": records.SIZE,
        "seq_len": records.SIZE,
        "lr": records.ABOVE_ZERO,
        "clip_norm": records.FROM_ZERO,
        "schedule": schema.choice(*SCHEDULES),
        "seed": schema.integer(0, 2**64 - 1),
        "patience": schema.optional(records.SIZE),
        "minutes": schema.optional(records.ABOVE_ZERO),
        "epochs": schema.optional(records.SIZE),
    }
)

# May be given with --resume; all else is what the run is.
_CHANGEABLE = ("minutes", "epochs", "patience")

_SAMPLE_SECONDS = (10.0, 30.0, 120.0)
_SAMPLE_PROMPT = "To be or not to be"
_SAMPLE_TEMPERATURE = 0.8
_SAMPLE_TOKENS = {"char": 240, "word": 60, "bpe": 100}
_TIMED_TOKENS = 1000


class UsageError(Exception):
    """Options that do not go together."""


def train(options: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    given = {name: value for name in DEFAULTS if (value := getattr(options, name)) is not None}
    if options.resume is None:
        trainer, folder, settings, data = _begin(options, given)
    else:
        trainer, folder, settings, data = _resume(options, given)
    limit = None if settings["minutes"] is None else settings["minutes"] * 60
    target = settings["epochs"] or UNLIMITED
    if trainer.epoch >= target:
        write(f"{folder}: all {target} epochs are done; --epochs {target + 10} would add ten")
        return 0
    samples = None
    if not options.quiet:
        samples = _Samples(trainer, settings)
        samples.show(0.0)
        trainer.callbacks.append(samples)
    try:
        trainer.fit(*data, epochs=target - trainer.fit_began, patience=settings["patience"], time_limit=limit)
    except KeyboardInterrupt as stop:
        if trainer.state.saved is None:
            raise
        command = _command("train", "--resume", folder)
        message = f"stopped after step {trainer.steps}; to go on from where it was saved:\n  {command}"
        raise KeyboardInterrupt(message) from stop
    if samples is not None:
        samples.show_last(trainer)
    epochs = trainer.epoch + trainer.batch / len(data[0])
    write(f"{'trained':16}  {trainer.steps} steps, {epochs:.2f} epochs")
    _print_summary(trainer, folder, settings, samples)
    return 0


def _begin(options: argparse.Namespace, given: dict[str, Any]) -> tuple[Any, Path, dict[str, Any], tuple[Any, Any]]:
    preset = PRESETS.get(options.preset, {})
    settings = {**DEFAULTS, **preset, **given}
    if settings["embedding_size"] is None:
        settings["embedding_size"] = settings["hidden_size"]
    if settings["minutes"] is None and settings["epochs"] is None:
        settings["minutes"] = _MINUTES
    _check(settings)
    source = options.text or ("shakespeare" if options.preset == "article" else None)
    from .. import text

    corpus = text.load_corpus(source)
    prepared = text.prepare(
        corpus,
        settings["tokens"],
        settings["split"],
        settings["batch_size"],
        settings["seq_len"],
        vocab_size=settings["vocab_size"],
    )
    tokenizer = prepared.tokenizer
    keys = ("cell", "embedding_size", "hidden_size", "num_layers", "dropout", "tie_weights", "device", "dtype", "seed")
    model = LanguageModel(tokenizer.vocab_size, **{key: settings[key] for key in keys})
    folder = _new_folder(options.out, source, settings["cell"])
    record = {
        "version": __version__,
        "preset": options.preset,
        "text": _lasting(source),
        "text_sha256": _sha256(corpus),
        **settings,
    }
    checkpoint.write_json(folder / checkpoint.SETTINGS, record)
    trainer = Trainer(
        model,
        Adam(lr=settings["lr"]),
        settings["clip_norm"] or None,
        _schedule(settings, len(prepared.train)),
        folder,
        not options.quiet,
        tokenizer=tokenizer,
    )
    name = {"rnn": "an RNN", "lstm": "an LSTM", "gru": "a GRU"}[settings["cell"]]
    size = sum(array.size for array in model.params.values())
    write(
        f"{name} of {settings['num_layers']} x {settings['hidden_size']} units, {size:,} numbers, "
        f"learns {_label(source)}: {len(corpus):,} characters, {tokenizer.vocab_size:,} different tokens\n"
        f"the run is kept in {folder}; Ctrl-C saves and stops"
    )
    return trainer, folder, record, (prepared.train, prepared.valid)


def _resume(options: argparse.Namespace, given: dict[str, Any]) -> tuple[Any, Path, dict[str, Any], tuple[Any, Any]]:
    refused = [name for name in given if name not in _CHANGEABLE]
    refused += [name for name in ("preset", "out") if getattr(options, name) is not None]
    if refused:
        flags = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise UsageError(f"{flags}: a resumed run keeps the settings that it was begun with")
    folder = Path(options.resume)
    checkpoint.find_checkpoint(folder, best=False)
    if not folder.is_dir():
        raise UsageError(f"--resume {folder}: name the run's folder, not a file in it")
    settings = _read_settings(folder)
    if "epochs" in given and "minutes" not in given:
        settings["minutes"] = None
    settings |= given
    prepared = _prepare_again(folder, settings, options.text)
    trainer = Trainer.resume(folder, prepared.train, prepared.valid, progress=not options.quiet)
    checkpoint.write_json(folder / checkpoint.SETTINGS, settings)
    write(f"{folder} goes on from step {trainer.steps} (epoch {trainer.epoch + 1}, batch {trainer.batch})")
    return trainer, folder, settings, (prepared.train, prepared.valid)


def _prepare_again(folder: Path, settings: dict[str, Any], source: str | None, tokenizer: Any = None) -> Any:
    """The data of a run, from its own text, which may have moved to ``source``."""
    from .. import text

    if source is None and settings["text"] == "-":
        raise UsageError(f"{folder}: its text came by standard input; give it again, as a file or '-'")
    corpus = text.load_corpus(source or settings["text"])
    if _sha256(corpus) != settings["text_sha256"]:
        label = _label(source or settings["text"])
        raise ValueError(f"{label}: not the text that {folder} was trained on; give that one as TEXT")
    return text.prepare(
        corpus,
        settings["tokens"] if tokenizer is None else tokenizer,
        settings["split"],
        settings["batch_size"],
        settings["seq_len"],
        vocab_size=settings["vocab_size"],
    )


def held_out(path: Path, tokenizer: Any) -> Any:
    """The validation data of a run, for its folder or a checkpoint in it."""
    folder = path if path.is_dir() else path.parent
    return _prepare_again(folder, _read_settings(folder), None, tokenizer).valid


def _read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run, as they were written."""
    path = folder / checkpoint.SETTINGS
    settings: dict[str, Any] = checkpoint.read_json(path)
    with schema.reading(path, checkpoint.CheckpointError):
        _SETTINGS("settings", settings)
    return settings


def _check(settings: dict[str, Any]) -> None:
    """What can be known to be wrong before a text is read."""
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", settings["device"]):
        raise UsageError(f"--device: expected cpu or cuda, got {settings['device']!r}")
    if settings["tie_weights"] and settings["embedding_size"] != settings["hidden_size"]:
        raise UsageError("--tie-weights: one table serves both ends only if --embedding-size equals --hidden-size")
    if settings["tokens"] == "bpe" and settings["vocab_size"] < _BYTES:
        raise UsageError(f"--vocab-size {settings['vocab_size']}: bpe tokens are at least the {_BYTES} single bytes")
    if settings["schedule"] == "cosine" and settings["epochs"] is None:
        raise UsageError("--schedule cosine: it falls towards an end, so give --epochs")


def _schedule(settings: dict[str, Any], batches: int) -> Any:
    if settings["schedule"] == "cosine":
        steps = settings["epochs"] * batches
        return optimizers.CosineWarmup(max(1, steps // 50), steps)
    if settings["schedule"] == "step":
        return optimizers.StepDecay(10 * batches, 0.5)
    return optimizers.Plateau() if settings["schedule"] == "plateau" else None


def _new_folder(out: str | None, source: str | None, cell: str) -> Path:
    if out is not None:
        folder = Path(out)
        if (folder / checkpoint.LAST).exists():
            raise UsageError(f"--out {folder}: there is a run in it; --resume {folder} goes on with it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(_label(source)).stem).strip("-") or "text"
    count = 0
    while True:
        count += 1
        folder = Path("runs", f"{name}-{cell}-{count}")
        # Made here or refused: two commands at once never share a folder.
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def _label(source: str | None) -> str:
    return "topics" if source is None else "stdin" if source == "-" else source


def _lasting(source: str | None) -> str | None:
    """The text's name as it still holds in another folder."""
    return str(Path(source).resolve()) if source is not None and Path(source).is_file() else source


def _sha256(corpus: str) -> str:
    return hashlib.sha256(corpus.encode("utf-8", "surrogatepass")).hexdigest()


class _Samples(Callback):
    """Prints what the model writes, at set times, from the same prompt and seed."""

    def __init__(self, trainer: Any, settings: dict[str, Any]) -> None:
        self._run = Run(trainer.model, trainer.tokenizer)
        self._length = _SAMPLE_TOKENS[settings["tokens"]]
        self._seed = settings["seed"]
        self._times = list(_SAMPLE_SECONDS)
        self._shown: int | None = None
        self.prompt = _SAMPLE_PROMPT
        try:
            if 0 in trainer.tokenizer.encode(self.prompt) and settings["tokens"] == "word":
                self.prompt = ""
        except ValueError:
            self.prompt = ""

    def on_step(self, trainer: Any, loss: float) -> None:
        """Print a sample if it is time."""
        if self._times and trainer.pace.elapsed >= self._times[0]:
            seconds = self._times.pop(0)
            self.show(seconds, trainer)

    def show_last(self, trainer: Any) -> None:
        """Print a sample of the model as it is, if the last one was of an earlier step."""
        if self._shown != trainer.steps:
            self.show(trainer.pace.elapsed, trainer)

    def show(self, seconds: float, trainer: Any = None) -> None:
        """Print one sample."""
        self._shown = None if trainer is None else trainer.steps
        loss = "" if trainer is None else f", loss {trainer.pace.loss:.3f}"
        text = self._run.generate(self.prompt, self._length, _SAMPLE_TEMPERATURE, seed=self._seed)
        title = f"--- sample after {seconds:.0f} s{loss} "
        write(f"\n{title:-<78}\n{printable(self.prompt + text)}\n{'':-<78}")

    def time(self) -> float:
        """Microseconds for each character that the model writes."""
        began = time.perf_counter()
        text = self._run.generate(self.prompt, _TIMED_TOKENS, _SAMPLE_TEMPERATURE, seed=self._seed)
        return (time.perf_counter() - began) / max(1, len(text)) * 1e6


def _print_summary(trainer: Any, folder: Path, settings: dict[str, Any], samples: _Samples | None) -> None:
    record = trainer.history[-1]
    lines = []
    if "valid_loss" in record:
        bits = record.get("valid_bits_per_character")
        lines.append(
            (
                "held-out text",
                f"loss {record['valid_loss']:.4f}, perplexity {number(record['valid_perplexity'] or float('inf'))}"
                + (f", {bits:.3f} bits per character" if bits else ""),
            )
        )
    unit = {"char": "characters", "word": "words", "bpe": "tokens"}[settings["tokens"]]
    if trainer.pace.rate:
        lines.append(("training speed", f"{trainer.pace.rate:,.0f} {unit} per second"))
    memory = peak_memory()
    if memory:
        lines.append(("peak memory", f"{memory / 2**20:.0f} MiB"))
    if samples is not None:
        lines.append(("generation", f"{samples.time():.0f} microseconds per character"))
    if trainer.pace.rate and all(settings[key] == _ARTICLE[key] for key in _ARTICLE_SHAPE):
        here = clock(_ARTICLE_CHARACTERS / trainer.pace.rate)
        there = _ARTICLE_HOURS[settings["cell"]]
        lines.append(("article's work", f"50 epochs x 1,003,854 characters: {here} here (projected from the speed)"))
        lines.append(("", f"beside {there} hours in the article, on a CPU that it does not name"))
    lines.append(("to train on", _command("train", "--resume", folder, "--minutes", "10")))
    prompt = ["--prompt", samples.prompt] if samples is not None and samples.prompt else []
    lines.append(("to generate more", _command("generate", folder, *prompt, "--temperature", _SAMPLE_TEMPERATURE)))
    write("\n".join(f"{title:16}  {text}" for title, text in lines))


def peak_memory() -> int | None:
    """The most memory that the process has held, in bytes; None where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        # Not getrusage, which on Linux counts what the parent process held before it started this one.
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _command(*words: object) -> str:
    """A command of this program as it can be typed here."""
    program = Path(sys.argv[0])
    if program.stem != "fastlstm" or not program.exists():
        start = [_nearer(Path(sys.executable)), "-m", "fastlstm"]
    else:
        found = shutil.which("fastlstm")
        start = ["fastlstm" if found and Path(found).samefile(program) else _nearer(program)]
    return shlex.join([*start, *map(str, words)])


def _nearer(path: Path) -> str:
    """The path from here, if it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
