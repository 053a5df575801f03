"""Rule-based rewards: whether a written answer is the right one. Pure functions on text."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

_NUMBER = r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
_IN_TEXT = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d])")
_GSM8K = re.compile(r"####[ \t]*([^\n]*)")


def gsm8k_answer(text: str) -> str | None:
    """Return what stands behind the last "####" up to the end of its line; None without it or with nothing there."""
    found = _GSM8K.findall(text)
    return (found[-1].strip() or None) if found else None


def boxed_answer(text: str) -> str | None:
    r"""Return the contents of the last \boxed{...}, braces inside it included; None without one that is closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for place in range(begin, len(text)):
        if text[place - 1] == "\\":  # \{ and \} are characters of the answer
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip() or None
    return None


def last_number(text: str) -> str | None:
    """Return the last number in a text, as it stands there ("1,234.50", "-3"); None without one.

    How answers are customarily found where no format was asked for. It takes any number, such as one of a check behind
    the answer, so it is wrong more often than a format is.
    """
    found = _IN_TEXT.findall(text)
    return found[-1] if found else None


def last_choice(text: str, choices: str = "ABCDE") -> str | None:
    """Return the last capital letter out of the choices that stands alone, as in "(B)" or "B."; None without one."""
    found = re.findall(rf"(?<![A-Za-z0-9])([{re.escape(choices)}])(?![A-Za-z0-9'])", text)
    return found[-1] if found else None


def number(text: str) -> Fraction | None:
    """Return the number that a text is, exactly; None where it is not one.

    "1,234.50", "-3", "$5", "3/4", "1e3", "12%" (which is 12), spaces around and one full stop at the end are read;
    "1,23" and "5 apples" are not numbers.
    """
    text = text.strip().removesuffix(".").removesuffix("\\%").removesuffix("%").strip()
    above, slash, below = text.partition("/")
    if "/" in below:
        return None
    if slash:
        first, second = number(above), number(below)
        return None if first is None or not second else first / second
    if re.fullmatch(r"[-+]?\d+(\.\d+)?[eE][-+]?\d{1,3}", text) is None:
        if not any(letter.isdigit() for letter in text) or re.fullmatch(_NUMBER, text) is None:
            return None
        text = text.replace(",", "").replace("$", "")
    try:
        return Fraction(Decimal(text))
    except InvalidOperation:
        return None


def same_answer(found: str | None, expected: str, tolerance: float = 0.0) -> bool:
    """Tell whether an answer is the expected one: as numbers where both are, else as text without outer spaces.

    Args:
        found: the answer; None is never right.
        expected: the right one.
        tolerance: largest distance of two numbers that are the same. Published evaluations take 0.001.
    """
    if found is None:
        return False
    ours, theirs = number(found), number(expected)
    if ours is not None and theirs is not None:
        return abs(ours - theirs) <= Fraction(str(tolerance))
    return found.strip() == expected.strip()


def reward(text: str, expected: str, style: str = "boxed") -> float:
    r"""Return 1.0 for a right answer in the right format, else 0.0.

    Args:
        text: what the model wrote.
        expected: the answer alone, such as "1,234".
        style: "boxed" reads the last \boxed{...}, "gsm8k" what follows the last "####", "whole" all of the text. An
            answer in another format is worth nothing.

    Raises:
        ValueError: there is no such style.
    """
    readers: dict[str, Callable[[str], str | None]] = {
        "boxed": boxed_answer,
        "gsm8k": gsm8k_answer,
        "whole": str.strip,
    }
    if style not in readers:
        raise ValueError(f"style is '{style}'; it must be one of 'boxed', 'gsm8k', 'whole'")
    return float(same_answer(readers[style](text), expected))
