"""Finds and masks personal data in text: mail addresses, telephone numbers, numbers of identity
cards, bank cards and accounts.

A number counts only if its form is unmistakable, a label stands before it, or its check digits are
right. Names and postal addresses have no form to find them by.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

Kind = Literal["mail", "phone", "id", "account"]
LABELS: Final[dict[Kind, str]] = {
    "mail": "mail addresses", "phone": "telephone numbers", "id": "ID numbers", "account": "bank cards and accounts",
}  # fmt: skip
MASKS: Final[dict[Kind, str]] = {"mail": "[EMAIL]", "phone": "[PHONE]", "id": "[ID]", "account": "[ACCOUNT]"}
_HALF_WIDTH: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
VERSION: Final = 1  # raised when other pieces of the same text would be masked


def mask(text: str, found: Callable[[Kind, str], None]) -> str:
    """The text with a mask in the place of each piece of personal data. found: called with the kind
    of each, and the piece."""
    plain = text.translate(_HALF_WIDTH)  # of the same length
    patterns = [_MAIL] if "@" in plain else []
    if _LONG_NUMBER.search(plain):
        patterns += _NUMBERS
    pieces: list[tuple[int, int, Kind]] = []
    for pattern in patterns:

        def hide(match: re.Match[str], pattern: _Pattern = pattern) -> str:
            start, end = match.span("piece" if "piece" in match.groupdict() else 0)
            if not pattern.check(match.string[start:end]):
                return match[0]
            pieces.append((start, end, pattern.kind))
            return "\0" * len(match[0])  # the next patterns do not see it

        plain = pattern.regex.sub(hide, plain)
    masked, last = [], 0
    for start, end, kind in sorted(pieces):
        found(kind, text[start:end])
        masked += [text[last:start], MASKS[kind]]
        last = end
    return "".join([*masked, text[last:]])


# ---- check digits


def _digits(text: str) -> str:
    return re.sub("[^0-9]", "", text)


def is_chinese_id(text: str) -> bool:
    """Whether 17 digits and a digit or X are a resident identity number of China: its province, date
    of birth and check character (ISO 7064, MOD 11-2) are right."""
    digits = _digits(text)
    try:
        datetime.date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) << (17 - place) for place, digit in enumerate(digits[:17]))
    return 11 <= int(digits[:2]) <= 83 and text[-1].upper() == "10X98765432"[total % 11]


def is_taiwan_id(text: str) -> bool:
    """Whether a letter and nine digits have the check digit of Taiwan's identity numbers."""
    place = 10 + "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(text[0])
    values = [place // 10, place % 10, *map(int, text[1:])]
    return sum(map(int.__mul__, values, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


def is_hong_kong_id(text: str) -> bool:
    """Whether one or two letters, six digits and a check character in parentheses are an identity
    number of Hong Kong."""
    compact = re.sub("[ ()]", "", text)
    letters, check = compact[:-7].rjust(2), int(compact[-1], 11)
    values = [36 if each == " " else int(each, 36) for each in letters] + list(map(int, compact[-7:-1]))
    return (sum(map(int.__mul__, values, (9, 8, 7, 6, 5, 4, 3, 2))) + check) % 11 == 0


def is_card_number(text: str) -> bool:
    """Whether a number has the length and beginning of a bank card's, and Luhn's check digit."""
    digits = _digits(text)
    forms = r"4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|35\d{14}|6(?:011|5\d\d)\d{12}|62\d{14,17}"
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return bool(re.fullmatch(forms, digits)) and (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits of an international bank account number are right (MOD 97-10)."""
    compact = text.replace(" ", "")
    return int("".join(str(int(each, 36)) for each in compact[4:] + compact[:4])) % 97 == 1


# ---- the forms


class _Pattern(NamedTuple):
    """regex: its group "piece", if it has one, is what counts. check: whether a match is one."""

    kind: Kind
    regex: re.Pattern[str]
    check: Callable[[str], bool] = lambda _: True


def _number(kind: Kind, regex: str, check: Callable[[str], bool] = lambda _: True) -> _Pattern:
    """Chinese text has no spaces around a number: only digits and Latin letters continue it."""
    return _Pattern(kind, re.compile(rf"(?<![0-9A-Za-z])(?<!\d\.){regex}(?![0-9A-Za-z])(?!\.\d)", re.ASCII), check)


_LONG_NUMBER = re.compile(r"\d(?:[ ./()–—-]{0,3}\d){5}|[A-Z]{2}\d\d ?[A-Z0-9]{4}", re.ASCII)
_MAIL = _Pattern(
    "mail",
    re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
    ),
)
_LABEL = (
    "(?i:tel|telephone|phone|mobile|cell|fax|telefon|téléphone|teléfono)(?i: number| no| nr)?|"
    "电话|電話|手机|手機|传真|傳真|联系方式|聯絡方式"
)
_NUMBERS: Final = (
    _number("id", r"[1-8]\d{5}[ -]?(?:1[89]|20)\d\d[01]\d[0-3]\d[ -]?\d{3}[\dXx]", is_chinese_id),
    _number("id", r"[A-Z][1289]\d{8}", is_taiwan_id),
    _number("id", r"[A-Z]{1,2}\d{6} ?\([\dA]\)", is_hong_kong_id),
    _number("id", r"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?!-)"),  # social security, US
    _number("account", r"\d(?:[ -]?\d){14,18}", is_card_number),
    _number("account", r"[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?", is_iban),
    _number("phone", r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"),  # mobile, China
    # China, Japan, Korea
    _number("phone", r"(?<!\d )(?:\(0\d{2,3}\) ?|0\d{2,3}[ –—-])\d{3,4}[ -]?\d{4}(?! \d)"),
    _number("phone", r"(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}"),  # North America
    _number("phone", r"\+[1-9]\d{0,2}(?:[ ./-]?\(?\d{2,4}\)?){2,6}", lambda text: 8 <= len(_digits(text)) <= 15),
    _number("phone", rf"(?:{_LABEL})[^\n0-9A-Za-z]{{0,4}}(?P<piece>[(+]?\d(?:[ ./()-]{{0,2}}\d){{6,14}})"),
)
