"""Train a network that recognises the state of a machine by its vibration, export it to plain C, compile it, and compare.

The C that a microcontroller would run is compiled by this machine's compiler, and gets the same test data as Python: with
float32 weights, and with int8 weights, which take about a quarter of the flash. If arm-none-eabi-gcc is installed, the C is
also built for a Cortex-M4, and its flash and RAM are printed.

python examples/embedded.py --help
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fastlstm
from fastlstm.adapters import c

STATES = ["normal", "out of balance", "worn bearing", "running dry"]

# Reads sequences from standard input, and writes the logits after the last step of each. It times the steps.
PROGRAM = """
#include "hear.h"
#include <stdio.h>
#include <time.h>

int main(void)
{
    static hear_state state;
    static float input[STEPS][HEAR_INPUT_SIZE], output[HEAR_OUTPUT_SIZE];
    double seconds = 0, steps = 0;

    while (fread(input, sizeof input, 1, stdin) == 1) {
        const clock_t began = clock();
        hear_reset(&state);
        for (int t = 0; t < STEPS; t++)
            hear_step(&state, input[t], t == STEPS - 1 ? output : 0);
        seconds += (double)(clock() - began) / CLOCKS_PER_SEC;
        steps += STEPS;
        fwrite(output, sizeof output, 1, stdout);
    }
    fprintf(stderr, "%.3f", 1e6 * seconds / steps);
    return 0;
}
"""

# All that a device needs besides its start-up code and drivers: it reads a sensor and writes the logits.
DEVICE = """
#include "hear.h"
volatile float sensor[HEAR_INPUT_SIZE], said[HEAR_OUTPUT_SIZE];
static hear_state state;

int main(void)
{
    float input[HEAR_INPUT_SIZE], output[HEAR_OUTPUT_SIZE];

    hear_reset(&state);
    for (;;) {
        for (int k = 0; k < HEAR_INPUT_SIZE; k++)
            input[k] = sensor[k];
        hear_step(&state, input, output);
        for (int k = 0; k < HEAR_OUTPUT_SIZE; k++)
            said[k] = output[k];
    }
}
"""


def make_runs(count: int, steps: int, sensors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vibrations [count, steps, sensors] of a machine at several places, and its states [count]."""
    rng = np.random.default_rng(seed)
    state = rng.integers(0, len(STATES), count)
    turns = np.arange(steps) / rng.uniform(9, 11, (count, 1)) + rng.uniform(0, 1, (count, 1))
    shake = np.sin(2 * np.pi * turns) * (1 + 0.8 * (state == 1))[:, None]
    knock = np.exp(-6 * (turns * 3.2 % 1)) * (1.5 * (state == 2))[:, None]
    hiss = rng.normal(0, 1, (count, steps)) * (0.7 * (state == 3))[:, None]
    gains = np.random.default_rng(0).uniform(0.5, 1.5, (3, sensors))
    seen = sum(part[:, :, None] * gain for part, gain in zip((shake, knock, hiss), gains, strict=True))
    return 9.81 + seen + rng.normal(0, 0.4, (count, steps, sensors)), state


def compiled(source: Path, steps: int, flags: str) -> Path | None:
    """Return a program with the exported model, or None if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    main, program = source.with_name("main.c"), source.with_name("main")
    main.write_text(PROGRAM)
    subprocess.run([compiler, "-std=c99", *flags.split(), f"-DSTEPS={steps}", main, source, "-o", program, "-lm"], check=True)
    return program


def flash_and_ram(source: Path) -> tuple[int, int] | None:
    """Return the bytes of flash and RAM of the model on a Cortex-M4, with its mathematical functions; None without compiler."""
    compiler, size = shutil.which("arm-none-eabi-gcc"), shutil.which("arm-none-eabi-size")
    if compiler is None or size is None:
        return None
    device, program = source.with_name("device.c"), source.with_name("device.elf")
    device.write_text(DEVICE)
    flags = ["-std=c99", "-O2", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
    link = ["-nostartfiles", "-Wl,--entry=main", "-Wl,--gc-sections", "--specs=nano.specs", "--specs=nosys.specs"]
    subprocess.run([compiler, *flags, *link, device, source, "-o", program, "-lm"], check=True)
    listed = subprocess.run([size, program], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, listed.splitlines()[1].split()[:3])
    return text + data, data + bss


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, export, compile and compare; print and return the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000, help="sequences to learn from")
    parser.add_argument("--steps", type=int, default=60, help="steps of a sequence")
    parser.add_argument("--sensors", type=int, default=2)
    parser.add_argument("--cell", choices=["lstm", "gru", "rnn"], default="gru")
    parser.add_argument("--hidden", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", default="-O3", help="for this machine's C compiler")
    parser.add_argument("--out", type=Path, help="folder to keep the C in; default: a temporary one")
    options = parser.parse_args(arguments)

    train = fastlstm.Batches(
        *make_runs(options.runs, options.steps, options.sensors, options.seed), batch_size=64, seed=options.seed
    )
    x, state = make_runs(1000, options.steps, options.sensors, options.seed + 1)
    model = fastlstm.SequenceClassifier(
        options.sensors, len(STATES), cell=options.cell, hidden_size=options.hidden, seed=options.seed
    )
    fastlstm.Trainer(model, fastlstm.Adam(lr=5e-3)).fit(train, epochs=options.epochs)
    x = x.astype(np.float32)
    expected = model(x.swapaxes(0, 1))
    found = {"python": {"accuracy": float((expected.argmax(axis=1) == state).mean())}}
    found["python"]["largest"] = float(np.abs(expected).max())
    print("Python: {accuracy:.1%} correct; logits up to {largest:.1f}.".format_map(found["python"]))

    with tempfile.TemporaryDirectory() as temporary:
        for weights in ("float32", "int8"):
            folder = (options.out or Path(temporary)) / weights
            files = c.export(model, folder, weights=weights, name="hear")
            print(
                f"C, {weights} weights: {files.weight_bytes} bytes of constants, {files.state_bytes} of state, "
                f"{files.macs_per_step} multiplications a step."
            )
            sizes = flash_and_ram(files.source)
            if sizes is not None:
                print("  On a Cortex-M4: {} bytes of flash, {} of RAM without the stack.".format(*sizes))
            program = compiled(files.source, options.steps, options.flags)
            if program is None:
                print("  No C compiler here to run it.")
                continue
            done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
            logits = np.frombuffer(done.stdout, np.float32).reshape(expected.shape)
            same, off = logits.argmax(axis=1) == expected.argmax(axis=1), np.abs(logits - expected)
            found[weights] = {
                "accuracy": float((logits.argmax(axis=1) == state).mean()),
                "agreement": float(same.mean()),
                "largest": float(off.max()),
                "mean": float(off.mean()),
                "microseconds": float(done.stderr),
            }
            print(
                "  {accuracy:.1%} correct, {agreement:.1%} the same as Python; the logits' mean error is {mean:.2g}, the "
                "largest "
                "{largest:.2g}; {microseconds:.2f} us for a step.".format_map(found[weights])
            )
    return found


if __name__ == "__main__":
    main()
