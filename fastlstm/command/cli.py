"""The ``fastlstm`` command: its options, its errors and exit codes, and every command but ``train``, see ``first_run``.

Exit codes: 0 done, 1 failed, 2 bad use, 130 interrupted. Knows runs and texts; nothing of layers or kernels.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import generate
from ..training import checkpoint
from ..training.progress import clock, mute, number, printable
from ..training.trainer import Trainer
from ..version import __version__
from . import train as first_run

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

_TEXT = (
    "a UTF-8 file, '-' for standard input, 'shakespeare' (1 MB, downloaded once, or taken from the folder that "
    "FASTLSTM_DATA names), or nothing: the language reference that every Python carries, which needs no network"
)

# What `export` writes, and where in the run's folder if no other place is named.
_EXPORTS = {"safetensors": "weights.safetensors", "onnx": "model.onnx", "c": "c"}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; None takes those of the process.

    Returns
    -------
    int
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else MISUSED
    try:
        code: int = options.command(options)
        # Here rather than at exit, where a broken pipe could no longer be caught.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has what it wanted.
        mute()
        return 0
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "interrupted")
        return INTERRUPTED
    except first_run.UsageError as error:
        _complain(f"error: {error}")
        return MISUSED
    except Exception as error:
        if options.debug:
            raise
        _complain(f"error: {_message(error)}")
        return FAILED


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"fastlstm: {text}", file=sys.stderr, flush=True)


def _message(error: Exception) -> str:
    """One line: the system's errors without their number, unnamed ones with their type."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "not enough memory; a smaller --batch-size, --seq-len or --hidden-size needs less"
    text = " ".join(str(error).split())
    # Errors of these kinds are raised with a message for people; any other is a fault, and its type helps to find it.
    told = isinstance(error, (ValueError, OSError, ArithmeticError, ImportError, checkpoint.CheckpointError, TypeError))
    return text if told and text else f"{type(error).__name__}: {text} (--debug shows where)"


def _generate(options: argparse.Namespace) -> int:
    run = generate.load(options.run)
    shown = printable if sys.stdout.isatty() else str
    pieces = run.stream(options.prompt, options.length, options.temperature, options.top_k, options.top_p, options.seed)
    sys.stdout.write(shown(options.prompt))
    for piece in pieces:
        sys.stdout.write(shown(piece))
        if sys.stdout.isatty():
            sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from .. import text

    run = generate.load(options.run)
    if run.tokenizer is None:
        raise ValueError(f"{options.run}: this model was not trained on text")
    if options.text is None:
        data: Any = first_run.held_out(Path(options.run), run.tokenizer)
    else:
        corpus = text.load_corpus(options.text)
        # Every row starts from the zero state: a short text is read in few rows.
        rows = max(1, min(64, len(corpus) // 2000))
        data = text.token_stream(run.tokenizer, corpus, batch_size=rows, seq_len=100)
    results = Trainer(run.model, progress=False).evaluate(data)
    if options.json:
        print(json.dumps(checkpoint.plain(results)))
        return 0
    print(f"tokens              {results['count']}")
    print(f"loss                {results['loss']:.4f} nats per token")
    print(f"perplexity          {number(results['perplexity'])}")
    print(f"bits per token      {results['bits_per_token']:.4f}")
    if "bits_per_character" in results:
        print(f"bits per character  {results['bits_per_character']:.4f}")
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.weights and options.to != "c":
        raise first_run.UsageError(f"--weights: only with --to c, not --to {options.to}")
    run = generate.load(options.run)
    assert run.path is not None
    path = Path(options.output) if options.output else run.path.parent / _EXPORTS[options.to]
    if path.name in (checkpoint.LAST, checkpoint.BEST):
        raise first_run.UsageError(f"-o {path}: that is the name of a checkpoint; name another file")
    tokenizer = {} if run.tokenizer is None else {"tokenizer": json.dumps(run.tokenizer.config)}
    if options.to == "onnx":
        from ..adapters import onnx

        onnx.export(run.model, path, metadata=tokenizer)
        print(f"{path}: {path.stat().st_size:,} bytes")
    elif options.to == "c":
        from ..adapters import c

        done = c.export(run.model, path, weights=options.weights or "float32")
        print(f"{done.header}, {done.source}: {done.weight_bytes:,} bytes of weights, {done.state_bytes:,} of state")
    else:
        weights = run.model.state_dict()
        checkpoint.write_tensors(path, weights, {"model": json.dumps(run.model.config), **tokenizer})
        print(f"{path}: {len(weights)} tensors, {sum(array.size for array in weights.values()):,} numbers")
    return 0


def _info(options: argparse.Namespace) -> int:
    from ..runtime import info

    facts = {"fastlstm": __version__, **info.describe()}
    if options.json:
        print(json.dumps(checkpoint.plain(facts)))
    else:
        _print_table(checkpoint.plain(facts), "")
    return 0


def _print_table(facts: Mapping[str, Any], indent: str) -> None:
    width = max((len(key) for key, value in facts.items() if not isinstance(value, Mapping)), default=0)
    for key, value in facts.items():
        if isinstance(value, Mapping):
            print(f"{indent}{key}")
            _print_table(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{indent}{key:{width}}  {shown}")


def _warmup(options: argparse.Namespace) -> int:
    from ..runtime import info

    began = time.monotonic()
    info.warmup(lambda line: print(line, flush=True))
    print(f"done in {clock(time.monotonic() - began)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="fastlstm",
        description="Train recurrent language models on the CPU, and generate text from them.",
        epilog="'fastlstm COMMAND --help' tells the options of one. To begin with:\n\n  fastlstm train --minutes 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], summary: str, examples: str) -> Any:
        added = commands.add_parser(
            name,
            parents=[debug],
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=function)
        return added

    _add_train(command)
    _add_others(command)
    return parser


def _add_train(command: Callable[..., Any]) -> None:
    train = command(
        "train",
        first_run.train,
        "train a model on a text, or go on training one",
        "  fastlstm train --minutes 2\n"
        "  fastlstm train book.txt --cell gru --minutes 30 --out runs/book\n"
        "  fastlstm train shakespeare --preset article\n"
        "  fastlstm train --resume runs/book --minutes 30",
    )
    train.add_argument("text", nargs="?", metavar="TEXT", help=_TEXT)
    train.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/NAME-CELL-N, a new one)")
    train.add_argument("--resume", metavar="DIR", help="go on with this run, exactly as if it had never stopped")
    train.add_argument("--preset", choices=list(first_run.PRESETS), help=first_run.PRESET_HELP)

    length = train.add_argument_group("how long (default: 2 minutes; of a resumed run, as it was begun)")
    length.add_argument("--minutes", type=_positive, metavar="N", help="stop after so many minutes")
    length.add_argument("--epochs", type=_count, metavar="N", help="epochs in all, those before a stop counted")
    length.add_argument(
        "--patience", type=_count, metavar="N", help="stop after N epochs in a row without a lower validation loss"
    )

    model = train.add_argument_group("model")
    model.add_argument("--cell", choices=["lstm", "gru", "rnn"], help=_default("cell"))
    model.add_argument("--hidden-size", type=_count, metavar="N", help=_default("hidden_size"))
    model.add_argument("--num-layers", type=_count, metavar="N", help=_default("num_layers"))
    model.add_argument("--embedding-size", type=_count, metavar="N", help="default: the hidden size")
    model.add_argument("--dropout", type=_chance, metavar="P", help=f"between layers, 0 to 1; {_default('dropout')}")
    model.add_argument("--tie-weights", action=argparse.BooleanOptionalAction, help="one table for embedding and output")
    model.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], help=_default("dtype"))
    model.add_argument("--device", metavar="cpu|cuda", help=_default("device"))

    text = train.add_argument_group("text")
    text.add_argument("--tokens", choices=["char", "word", "bpe"], help=_default("tokens"))
    text.add_argument("--vocab-size", type=_count, metavar="N", help=f"of bpe tokens; {_default('vocab_size')}")
    text.add_argument(
        "--split",
        choices=["tail", "rows"],
        help=f"held out: the last 10%% of the text, or the last 5%% of each batch row; {_default('split')}",
    )

    learning = train.add_argument_group("learning")
    learning.add_argument("--batch-size", type=_count, metavar="N", help=_default("batch_size"))
    learning.add_argument("--seq-len", type=_count, metavar="N", help=f"steps of one batch; {_default('seq_len')}")
    learning.add_argument("--lr", type=_positive, metavar="X", help=f"learning rate of Adam; {_default('lr')}")
    learning.add_argument("--clip-norm", type=_from_zero, metavar="X", help=f"0: none; {_default('clip_norm')}")
    learning.add_argument("--schedule", choices=list(first_run.SCHEDULES), help=_default("schedule"))
    learning.add_argument("--seed", type=_seed, metavar="N", help=_default("seed"))

    train.add_argument("--quiet", action="store_true", help="no progress and no samples")


def _add_others(command: Callable[..., Any]) -> None:
    run_help = "a run's folder (its best checkpoint), or a checkpoint file"
    generate = command(
        "generate",
        _generate,
        "print a prompt and what the model goes on with",
        '  fastlstm generate runs/book --prompt "It was" --length 400\n'
        "  fastlstm generate runs/book --temperature 0.7 --top-p 0.95 --seed 1",
    )
    generate.add_argument("run", metavar="RUN", help=run_help)
    generate.add_argument("--prompt", default="", metavar="TEXT", help="default: none, as at the start of a line")
    generate.add_argument("--length", type=_whole, default=500, metavar="N", help="tokens to generate; default 500")
    generate.add_argument(
        "--temperature",
        type=_from_zero,
        default=1.0,
        metavar="X",
        help="below 1 more careful, above 1 bolder, 0 always the likeliest; default 1",
    )
    generate.add_argument("--top-k", type=_count, metavar="N", help="draw from the N likeliest only")
    generate.add_argument("--top-p", type=_part, metavar="P", help="draw from the likeliest that make up P only")
    generate.add_argument("--seed", type=_seed, metavar="N", help="the same seed gives the same text; default: none")

    evaluate = command(
        "evaluate",
        _evaluate,
        "tell how well a model predicts a text",
        "  fastlstm evaluate runs/book\n  fastlstm evaluate runs/book other.txt --json",
    )
    evaluate.add_argument("run", metavar="RUN", help=run_help)
    evaluate.add_argument(
        "text", nargs="?", metavar="TEXT", help="as for train; default: what was held out of the text of the run"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    export = command(
        "export",
        _export,
        "write a model for other programs",
        "  fastlstm export runs/book --to safetensors\n"
        "  fastlstm export runs/book --to onnx -o book.onnx\n"
        "  fastlstm export runs/book --to c --weights int8",
    )
    export.add_argument("run", metavar="RUN", help=run_help)
    export.add_argument(
        "--to",
        choices=list(_EXPORTS),
        required=True,
        help="safetensors: the weights, names and layouts are those of torch.nn; onnx: the model, for onnxruntime and others; "
        "c: the model as one C99 header and source",
    )
    export.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help=f"the file, for c the folder; default: in the run's folder {', '.join(_EXPORTS.values())}",
    )
    export.add_argument("--weights", choices=["float32", "int8"], help="how c keeps them; default float32")

    info = command("info", _info, "tell what this machine offers and which kernels serve it", "  fastlstm info --json")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    command(
        "warmup",
        _warmup,
        "compile all kernels ahead, for images and read-only systems",
        "  fastlstm warmup",
    )


def _default(name: str) -> str:
    return f"default {first_run.DEFAULTS[name]}"


def _number(kind: type[int] | type[float], wanted: str, fits: Callable[[Any], bool]) -> Callable[[str], int | float]:
    """Make a type for argparse that says what it wants."""

    def convert(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")

    return convert


_count = _number(int, "a whole number from 1", lambda value: value >= 1)
_whole = _number(int, "a whole number from 0", lambda value: value >= 0)
_seed = _number(int, "a whole number from 0 to 2**64 - 1", lambda value: 0 <= value < 2**64)
_positive = _number(float, "a number above 0", lambda value: 0 < value < float("inf"))
_from_zero = _number(float, "a number from 0", lambda value: 0 <= value < float("inf"))
_chance = _number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
_part = _number(float, "a number above 0 and at most 1", lambda value: 0 < value <= 1)


if __name__ == "__main__":
    sys.exit(main())
