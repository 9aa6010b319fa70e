"""Exported C on a Cortex-M: built by its compiler, its flash and RAM counted, and run by a simulator.

What is not installed here is skipped, visibly.
"""

import shutil
import subprocess

import numpy as np
import pytest

from fastlstm.adapters import c
from tests.adapters.c.programs import LAYERS, STRICT, assert_close, command, dequantize, make, sequences

ARM = "arm-none-eabi-"
CORTEX = {
    "cortex-m4": ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"],
    "cortex-m0plus": ["-mcpu=cortex-m0plus", "-mthumb"],
}

needs_arm = pytest.mark.skipif(
    shutil.which(ARM + "gcc") is None, reason="no arm-none-eabi-gcc here (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi)"
)
QEMU = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none", "-semihosting"]
needs_qemu = pytest.mark.skipif(shutil.which(QEMU[0]) is None, reason="no qemu-system-arm here (Debian: qemu-system-arm)")


# A Cortex-M without any library's start: vectors, the floating-point unit switched on, output by semihosting.
BOARD = r"""
#include "model.h"
#include <stdint.h>
static int semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
static const float input[][MODEL_INPUT_SIZE] = {VALUES};
static model_state state;
void start_here(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFU << 20;
    __asm__ volatile("dsb; isb");
    model_reset(&state);
    for (unsigned t = 0; t < sizeof input / sizeof input[0]; t++) {
        union { float number; uint32_t bits; } output[MODEL_OUTPUT_SIZE];
        model_step(&state, input[t], &output[0].number);
        for (int k = 0; k < MODEL_OUTPUT_SIZE; k++) {
            char digits[10] = "00000000\n";
            for (int d = 0; d < 8; d++)
                digits[d] = "0123456789abcdef"[output[k].bits >> (28 - 4 * d) & 15];
            semihost(4, digits);
        }
    }
    semihost(0x18, (const void *)0x20026);
    for (;;) continue;
}
__attribute__((section(".vectors"), used)) static void *const vectors[16] = {(void *)0x20010000, (void *)start_here};
"""
LINK = """
ENTRY(start_here)
MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 1M  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 64K }
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) } > FLASH
    .data : { *(.data*) } > RAM
    .bss : { *(.bss*) *(COMMON) } > RAM
}
"""


def sections(file):
    """(text, data, bss) in bytes."""
    return tuple(map(int, command([ARM + "size", file]).decode().splitlines()[1].split()[:3]))


@needs_arm
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("processor", CORTEX)
def test_flash_and_ram_of_a_cortex(processor, weights, tmp_path):
    done = c.export(make("gru", 3, 24), tmp_path, weights)
    command([ARM + "gcc", *STRICT, *CORTEX[processor], "-O2", "-c", done.source, "-o", tmp_path / "model.o"])
    text, data, bss = sections(tmp_path / "model.o")
    assert (data, bss) == (0, 0), "RAM beside the caller's state"
    assert done.weight_bytes < text < done.weight_bytes + 2048


@needs_arm
@needs_qemu
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_simulated_cortex_equals_python(kind, weights, tmp_path):
    layer = make(kind, 3, 9, {"num_layers": 2})
    x = sequences(layer, batch=1, steps=20)[0]
    done = c.export(layer, tmp_path, weights)
    rows = ",".join("{" + ",".join(float(value).hex() + "F" for value in row) + "}" for row in x)
    (tmp_path / "board.c").write_text(BOARD.replace("{VALUES}", "{" + rows + "}"))
    (tmp_path / "board.ld").write_text(LINK)
    program = tmp_path / "board.elf"
    command(
        [
            ARM + "gcc",
            "-O2",
            *CORTEX["cortex-m4"],
            "-nostartfiles",
            "--specs=nosys.specs",
            "-T",
            tmp_path / "board.ld",
            tmp_path / "board.c",
            done.source,
            "-o",
            program,
            "-lm",
        ]
    )
    ran = subprocess.run([*QEMU, "-kernel", program], capture_output=True, check=True, timeout=60)
    found = np.array([int(word, 16) for word in (ran.stdout + ran.stderr).split()], np.uint32).view(np.float32)
    if weights == "int8":
        dequantize(layer)
    assert_close(found.reshape(20, -1), layer(x)[0])
