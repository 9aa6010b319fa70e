"""The figures and claims of the article that this project is measured against. Everything that compares with it reads them
here.

The article is a community article on LSTMs, published in October 2025. This file holds its facts and figures, not its text. It
trains four systems on about 1 MB of Shakespeare, on a CPU that it does not name and on an RTX 3090. It does not name its
tokens, its split, its optimizer or its input width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Its experiment.
HIDDEN_SIZE, NUM_LAYERS, STEPS, BATCH, EPOCHS = 256, 2, 100, 64, 50
PROMPT = "To be or not to be"
# Of the text used here, by characters with the last tenth held out: distinct characters, and updates in an epoch.
VOCABULARY, UPDATES = 65, 156

NEAR = 0.1  # a measured figure holds if it is within a tenth of the article's: a margin chosen beforehand

Part = tuple[str, str]  # "CPU" or "GPU", and a system


@dataclass(frozen=True)
class System:
    """One of the four systems: hours of training on each device, perplexity, and how long its text stays coherent."""

    cpu_hours: float | None
    gpu_hours: float | None
    perplexity: float
    coherent: str
    coherent_words: tuple[float, float]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times or counts. `text` names it in tables and in stored results; `value` is None where it has none."""

    text: str
    value: float | None
    over: Part
    under: Part

    @property
    def figure(self) -> str:
        """The article's figure as a table shows it."""
        return "–" if self.value is None else f"{self.value:g}"


@dataclass(frozen=True)
class Claim:
    """Any other claim: its text, its figure as a table shows it, and the figure as a number or a range where there is one."""

    text: str
    figure: str
    value: float = math.nan
    between: tuple[float, float] = (math.nan, math.nan)


SYSTEMS = {
    "rnn": System(6, None, 125.3, "10–15 words", (10, 15)),
    "lstm": System(18, 2, 45.7, "40–50 words", (40, 50)),
    "gru": System(14, 1.5, 48.2, "like the LSTM", (40, 50)),
    "transformer": System(None, 0.5, 28.4, "500+ tokens", (500, math.inf)),
}

TIMES = {
    "lstm_cpu_over_gpu": Ratio("LSTM: CPU time / GPU time", 9.0, ("CPU", "lstm"), ("GPU", "lstm")),
    "gru_cpu_over_gpu": Ratio("GRU: CPU time / GPU time", 9.33, ("CPU", "gru"), ("GPU", "gru")),
    "cpu_lstm_over_rnn": Ratio("CPU: LSTM time / RNN time", 3.0, ("CPU", "lstm"), ("CPU", "rnn")),
    "cpu_gru_over_lstm": Ratio("CPU: GRU time / LSTM time", 0.78, ("CPU", "gru"), ("CPU", "lstm")),
    "gpu_gru_over_lstm": Ratio("GPU: GRU time / LSTM time", 0.75, ("GPU", "gru"), ("GPU", "lstm")),
    "gpu_lstm_over_transformer": Ratio("GPU: LSTM time / Transformer time", 4.0, ("GPU", "lstm"), ("GPU", "transformer")),
}
# The article has no such figure. It is measured to compare it with the one above.
CPU_LSTM_OVER_TRANSFORMER = Ratio("CPU: LSTM time / Transformer time", None, ("CPU", "lstm"), ("CPU", "transformer"))

PARAMETERS = {
    "lstm_over_rnn": Ratio("parameters: LSTM / RNN", 4.0, ("CPU", "lstm"), ("CPU", "rnn")),
    "gru_over_lstm": Ratio("parameters: GRU / LSTM", 0.75, ("CPU", "gru"), ("CPU", "lstm")),
}

CLAIMS = {
    "perplexity_order": Claim("perplexity: RNN > GRU > LSTM > Transformer", "125.3 > 48.2 > 45.7 > 28.4"),
    "rnn_memory": Claim("memory: tokens remembered, RNN", "5–10", between=(5, 10)),
    "lstm_and_gru_memory": Claim("memory: tokens remembered, LSTM and GRU", "30–50", between=(30, 50)),
    "gradients_survive": Claim("gradients survive through the cell state", "LSTM yes, RNN no"),
    "gru_is_faster": Claim("the GRU is 25 % faster than the LSTM", "1.25 times as fast", 1.25),
    "lstm_is_better": Claim("the LSTM's perplexity is 3 times better than the RNN's", "3 (2.7 by its own table)", 2.7),
    "transformer_is_faster": Claim("Transformers are 10 times faster", "10 (4 by its own table)", 10.0),
    "transformer_memory": Claim("a Transformer's memory is quadratic in length", "quadratic"),
    "memory_limit": Claim("a hard limit of about 50 tokens; 512 units or 3 layers move it little", "about 50"),
    "no_parallelism": Claim("a recurrence is impossible to parallelise", "impossible"),
    "lstm_coherence": Claim("text stays coherent over 30–50 words (LSTM) against 5–10 (RNN)", "30–50 against 5–10"),
    "sample_texts": Claim("its sample texts", "To be or not to be …"),
}
COHERENCE = {"lstm": (30, 50), "rnn": (5, 10)}  # words, of the claim lstm_coherence; the table of systems has other figures
