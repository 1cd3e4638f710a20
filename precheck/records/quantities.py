"""One way to write a magnitude, bits, a share, bytes and a count, in sentences and in tables."""

from __future__ import annotations

import json

_LONGEST_PLAIN = 1e7
_SMALLEST_PLAIN = 1e-3


def magnitude(value: float) -> str:
    """A magnitude: whole numbers with separators, small ones with three digits, else a power.

    >>> magnitude(65504.0), magnitude(231000.4), magnitude(3.3895e38)
    ('65,504', '231,000', '3.4e+38')
    >>> magnitude(12.345), magnitude(0.0), magnitude(0.0000123)
    ('12.3', '0', '1.2e-05')
    """
    size = abs(value)
    if value == 0:
        return "0"
    if size >= _LONGEST_PLAIN or size < _SMALLEST_PLAIN:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:#.3g}".rstrip(".")  # noqa: PLR2004  three digits


def bits(value: float) -> str:
    """Headroom in bits; what is missing is never written as nothing.

    >>> bits(1.0), bits(-1.82), bits(-0.032), bits(112.7)
    ('1.0', '-1.8', '-0.03', '113')
    """
    if -0.05 < value < 0:  # noqa: PLR2004  what one decimal would round to 0
        return f"{value:.1g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"  # noqa: PLR2004  three digits


def times(ratio: float) -> str:
    """How many times larger one value is; what is larger never looks equal.

    >>> times(3.519), times(1.0224), times(1.00004), times(120.0), times(0.5)
    ('3.5x', '1.02x', '1.00004x', '120x', '0.5x')
    """
    texts = (f"{ratio:.{digits}g}" for digits in range(2, 18))
    text = next((text for text in texts if ratio <= 1 or float(text) > 1), "1")
    return f"{magnitude(ratio) if 'e' in text else text}x"


def percent(share: float) -> str:
    """A share of one; only what is exactly none or all is written as 0% or 100%.

    >>> percent(0.984), percent(1.0), percent(0.99999), percent(0.00001)
    ('98.4%', '100%', '>99.9%', '<0.1%')
    """
    if share in {0.0, 1.0}:
        return f"{share:.0%}"
    if share > 0.999:  # noqa: PLR2004  what one decimal would round to 100
        return ">99.9%"
    return "<0.1%" if share < 0.001 else f"{share:.1%}"  # noqa: PLR2004  the same at the other end


def nats(value: float) -> str:
    """A divergence in nats, two digits.

    >>> nats(0.5123), nats(0.0000098), nats(0.0), nats(2.25)
    ('0.51', '9.8e-06', '0', '2.2')
    """
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 0.01 else f"{value:.2g}"  # noqa: PLR2004  two digits


def num_bytes(value: float) -> str:
    """A size in powers of 1,024.

    >>> num_bytes(512), num_bytes(15_231_233_024)
    ('512 B', '14.2 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004  the step between the units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def counted(number: int, noun: str) -> str:
    """A number of things; the noun takes an s unless there is one.

    >>> counted(1, "parameter"), counted(1024, "token")
    ('1 parameter', '1,024 tokens')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A time to wait, as one would say it.

    >>> duration(0.4), duration(42.3), duration(150.0), duration(7300.0)
    ('1 second', '42 seconds', '2 minutes', '2 hours')
    """
    if seconds < 90:  # noqa: PLR2004  beyond it minutes say it better
        return counted(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    return counted(minutes, "minute") if minutes < 90 else counted(round(minutes / 60), "hour")  # noqa: PLR2004


def first_sentence(text: str) -> str:
    """A text up to its first full stop; a stop inside a name or a number has no space after it.

    >>> first_sentence("bloom has no sdpa. Please open an issue.")
    'bloom has no sdpa'
    """
    return text.split(". ", 1)[0].rstrip(".")


def listed(names: tuple[str, ...], *, most: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> listed(("a", "b", "c", "d", "e"))
    'a, b, c and 2 more'
    >>> listed(("a", "b"))
    'a, b'
    """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def python_string(text: str) -> str:
    r"""A string of Python with this value, in double quotes.

    JSON spells letters the same; its escapes of what lies beyond 16 bits are two characters here.

    >>> print(python_string('C:\\"é"🎉\u202e'))
    "C:\\\"é\"🎉\u202e"
    """
    return "".join(
        each if each.isprintable() else ascii(each)[1:-1]
        for each in json.dumps(text, ensure_ascii=False)
    )
