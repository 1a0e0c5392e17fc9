"""Numbers as a person reads them."""


def count_of(number: int, noun: str) -> str:
    """Return a number of things as text.

    >>> count_of(1, "evaluation"), count_of(2000, "checkpoint")
    ('1 evaluation', '2,000 checkpoints')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Return a time for a person.

    >>> duration(3.14), duration(200), duration(8000)
    ('3.1 s', '3 min 20 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def fixed(value: float | None, digits: int = 1) -> str:
    """Return a number with some digits after the point; a dash for one that is not known.

    >>> fixed(1234.56), fixed(0.98765, 2), fixed(-0.5), fixed(-0.01), fixed(None)
    ('1,234.6', '0.99', '−0.5', '0.0', '–')
    """
    return "–" if value is None else f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def significant(value: float) -> str:
    """Return a number with three significant digits, or all that it has before the point.

    >>> significant(23.82), significant(1.663), significant(12345.6), significant(0.00019682), significant(0)
    ('23.8', '1.66', '12,346', '1.97e-04', '0')
    """
    if 0 < abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def probability(value: float | None) -> str:
    """Return a probability with three digits; a dash for one that is not known.

    >>> probability(0.4521), probability(0.0003), probability(None)
    ('0.452', '< 0.001', '–')
    """
    return "< 0.001" if value is not None and value < 0.0005 else fixed(value, 3)
