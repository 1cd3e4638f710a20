"""The built-in probes: texts that are known to trigger failures, and why.

Token counts are chosen so that most of them fit into one batch without padding, for which a decoder
layer's weights are read once. With a left-padded batch of unequal lengths and one longer text they
are about 1,024 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

ROW_TOKENS = 48
"""Length of every row of the batch without padding; 16 rows."""

PADDED_TOKENS = (7, 11, 16, 21, 29)
"""Lengths of the left-padded rows; the longest has no padding."""

LONG_TOKENS = 172
"""Length of the longer text; 1,024 tokens with all others."""

QUICK_ROWS = 4
QUICK_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """A text and how to tokenize it."""

    name: str
    text: str
    kind: str = "text"
    """``text`` with the tokenizer's own special tokens, ``bare`` without, ``chat`` by template."""
    is_odd: bool = False
    """Nobody writes like this: it may show a fault, and says little of the precision of a model."""


SEED_PROMPT = "上海有个非常出名的地方，"
"""Printed only `!` in float16 (https://github.com/QwenLM/Qwen3/issues/884)."""

GEMMA_PROMPT = "the self-attention is important for transformer because"
"""NaN in float16 (https://github.com/google/gemma_pytorch/issues/10)."""

BUILTIN = (
    TextPrompt(
        name="plain", text="The capital of France is Paris, and the river that crosses it is"
    ),
    # Gemma-3-12b peaks at 471k without BOS and at 778k with it (arXiv 2503.22329)
    TextPrompt(
        name="without_bos",
        is_odd=True,
        kind="bare",
        text="The weather in the mountains changed quickly.",
    ),
    TextPrompt(name="chat", kind="chat", text="Why does my model print only exclamation marks?"),
    TextPrompt(
        name="digits",
        is_odd=True,
        text="3.14159265358979323846264338327950288419716939937510582097494459",
    ),
    TextPrompt(name="self_attention", text=GEMMA_PROMPT),
    TextPrompt(name="shanghai", text=SEED_PROMPT),
    TextPrompt(
        name="code", text="def add(a: int, b: int) -> int:\n    return a + b\n\nprint(add(2, 3))"
    ),
    TextPrompt(
        name="cjk", text="東京は日本の首都です。 서울은 한국의 수도입니다. 北京是中国的首都。"
    ),
    TextPrompt(name="emoji", is_odd=True, text="🎉🚀🔥😀👩‍👩‍👧‍👦🏳️‍🌈 ✅❌ 🎉🚀🔥"),
    # attention sinks and massive activations sit on the first token and on repeated ones
    TextPrompt(
        name="repeated",
        is_odd=True,
        kind="bare",
        text="the the the the the the the the the the the the",
    ),
    # massive activations: first "." or newline (arXiv 2402.17762)
    TextPrompt(
        name="newline_first",
        is_odd=True,
        text="\n\n\nOnce upon a time.\n\nThere was a newline first.\n",
    ),
    TextPrompt(
        name="punctuation",
        is_odd=True,
        text="...!!!???,,,;;;:::((([[[{{{}}}]]])))---___***///\\\\\\",
    ),
    TextPrompt(
        name="mathematics", text=r"$$\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}$$ so that"
    ),
    TextPrompt(name="scripts", text="Привет, мир! مرحبا بالعالم. नमस्ते दुनिया। שלום עולם. Γειά σου"),
    TextPrompt(
        name="whitespace",
        is_odd=True,
        text="a    b\t\tc      d          e\t\t\t\tf                g",
    ),
)

PADDED = tuple(
    TextPrompt(name="padded", text=text)
    for text in (
        "Yes.",
        "What is attention?",
        SEED_PROMPT,
        GEMMA_PROMPT,
        "Write a short letter to a friend about the sea, the wind and the light at night.",
    )
)

LONG = TextPrompt(
    name="long",
    text=(
        "It was late when the train reached the coast. The passengers had long stopped talking, "
        "and the lamps along the corridor burned low. A woman by the window counted the stations "
        "on a folded map: seven behind them, two ahead. She had written the date, 14 March 1998, "
        "in its margin, beside a telephone number and the words 'ask for the keys'. Outside, the "
        "fields gave way to dunes, and the dunes to a grey line that might have been water or sky. "
        "The guard came through, asked for nothing, and closed the door behind him."
    ),
)

SPOKEN = "The capital of France is Paris, and the river that crosses it is the Seine."
"""The transcript that a speech model should give, up to its last token."""


HELD_OUT = (
    "The harbour freezes in January; by April the first boats are back, and prices fall.",
    "Der Zug fährt um 7:45 Uhr ab und kommt gegen Mittag in Köln an. Bitte umsteigen!",
    "SELECT name, COUNT(*) FROM orders WHERE total > 1000 GROUP BY name ORDER BY 2 DESC;",
    "Заседание перенесли на 28 октября, 2027 год; начало в 18:30, зал 4.",
    "机器学习模型在半精度下运行时，需要注意数值范围。",
    '{"id": 90817, "tags": ["alpha", "beta"], "ratio": -0.25e-3, "ok": true, "next": null}',
    "Q: If 17 boxes hold 23 nails each, how many nails are there?\nA: 17 * 23 = 391, so 391.",
    'I don\'t know... maybe?! She said: "wait -- not yet", and (oddly) nobody moved.',
)
"""Texts that a fix is proved by; no scan uses them as built-in probes."""

HELD_OUT_TOKENS = 48
"""Length of each for a model without a tokenizer."""
