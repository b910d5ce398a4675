"""Recognizes the encoding of text that is not UTF-8, and text that was converted wrongly.

Every candidate that decodes the bytes is scored by how probable its characters are: a frequent
character of the language, a less frequent one, or one that hardly occurs. A one-byte encoding with
any letters is a candidate too. The best one must be far ahead of the others; otherwise the caller
refuses the file, because a wrong guess would train a model on nonsense.
"""

from __future__ import annotations

import codecs
import functools
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SAMPLE_BYTES = 1 << 16
# The natural logarithm of how much more probable the best candidate must be than the second.
MIN_LEAD = 14.0
MAX_CANDIDATES = 3  # that an error message names

# Frequent characters by language, the most frequent first, counted in instructions, poems and the
# messages of programs.
_SIMPLIFIED = (
    "的一和个是能以可在用人有为这我们了生数不中要来提于成行对方如作地您学物他大通它时力动据法出更分过"
    "种并进工会子或发定到常多下体理使供上等量解自助化关度文面些需程机表建高好性信间意最重计应入果保你"
    "加题类其之家户网式将件与算因问语够系得息同设新全而现确活也产点帮公国变电务经品实目标输本气内者此"
    "开业包创水感例都然持所字习合小情技结型主着美制具交心事决效安非术给色两后统器特无相名天述句智取平"
    "球正当源总改每展影么接列从流少由比示受利减选客支根外任序图很明处求三让起车单年增里组形词海还括服"
    "就模写说长导想她容项放快议己期位健调部手析存值样运社什预员验排观识找节且响素造食质但强立环格引构"
)
_TRADITIONAL = (
    "的不無用檔有一中在定語時法案式是人使行字數名出入選作目個上元設指示山為來列日取項未可新已要標位如"
    "到件以生本相和能風此下前輸開將何自空白子分大二長得稱天錯三文十動多重雲後水效資或存號春知月應更明"
    "者誤金於花過見表錄正顯引間除爲同對區結程成合所處令路首之年清從提詩格別與方值心君符沒訊組高南歸江"
    "度小會色秋失置建模馬變內夜立非地發遠物頭至古道西李送支型加連第去事當參安國料否向版門歌王鍵五記解"
    "關理預機交印執工題敗碼書外啟讀請移寫東期回被果圖四家亞了客類還器共單傳其落今流聲居少玉體寒陽青樹"
    "這望里我端包主雨視最態編萬城朝需千代公平光身命則鑰容影深只含離進盡情邊徑爾因窗始狀舊思然拉草換石"
)
_KANA = (
    "のいるにをはとしがてでたなすんれまりかっこあさきもらくけだよつそうどおわえせみちやめじねばろほへぶび"
    "ンスルトーイリアクラックドシレジタプマデロフテバグムメコサナセキオニパカウエミツハブノモヤワポビ"
)
_KANJI = (
    "日人一大年国出本中子見分言行上生事自気時者前間手方私場今会何的用名定表文数不使合力字指示変要更新設列"
    "無入値作成正対除内実東京都県市区町村山川田木藤井佐高橋太郎美和愛花春夏秋冬月火水土曜彼女思食飲車電駅"
    "学校友達母父家族歳住齢三英社員聞世界語北南西口天海道風雨雪朝昼夜晩心足耳話書買売店安早遅短古良悪強弱"
    "白黒赤青阪屋千葉取動式在可終明存型読関最引再能号認証開外報配告形番続検接情同部現化共義理得長位目複下"
    "選択発性以画全切信空準問先所参約保致標加囲当返覧始追記視受小状通別演持法処印集張色態利単像"
)
_HANGUL = (
    "다이니지을수에습는로를하시없가자스일의정기어파용서음합리사할트인한은오위션아않문있그대드제보상만부으"
    "프름값치표크모작함실해입패바력고데전형나명소식여중된경면도키행설되업요라열들세못메성구목비개적레호출"
    "과록동변잘령미류화거료번테야조원내마단장환필태우현주체너연추재유복코읽공무간러안와분본항었반색더려선"
    "커계결르줄당최때래알또른임속진방능확절접참검국았끝처새준종각건했것던같학생말사람집물"
)
_PUNCTUATION = "，。、：；？！「」『』（）《》〈〉【】“”‘’…—·・　～－〔〕"
_RARE, _NEVER = math.log(1e-7), math.log(1e-12)
_ASCII, _SIGN = math.log(1 / 40), math.log(1 / 200)
_STRAY_NUL = math.log(1e-4)
_ONE_BYTE = math.log(1 / 100)  # a high byte of any one-byte encoding


class Found(NamedTuple):
    """A codec of Python, and the name that people know."""

    codec: str
    name: str


class _Candidate(NamedTuple):
    found: Found
    languages: tuple[str, ...]


_GB18030 = Found("gb18030", "GB18030")
_CANDIDATES = (
    _Candidate(_GB18030, ("simplified", "traditional")),
    _Candidate(Found("cp950", "Big5"), ("traditional",)),
    _Candidate(Found("cp932", "Shift-JIS"), ("japanese",)),
    _Candidate(Found("euc_jp", "EUC-JP"), ("japanese",)),
    _Candidate(Found("cp949", "EUC-KR"), ("korean",)),
    _Candidate(Found("utf-16-le", "UTF-16LE"), ("simplified", "traditional", "japanese", "korean", "latin")),
    _Candidate(Found("utf-16-be", "UTF-16BE"), ("simplified", "traditional", "japanese", "korean", "latin")),
)
_WESTERN = Found("cp1252", "Windows-1252")
_ISO_2022_JP = Found("iso2022_jp_2", "ISO-2022-JP")
_ESCAPE = re.compile(rb"\x1b\$(?:[@B]|\(D)")  # to Japanese characters
_SEVEN_BIT = frozenset(
    ("iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_3", "iso2022_jp_ext", "iso2022_kr", "hz", "utf-7")
)


class Unsure(NamedTuple):
    """The names of the candidates, the most probable first."""

    candidates: tuple[str, ...]


def find_codec(name: str) -> Found | None:
    """The codec of text with this name, or None."""
    try:
        codec = codecs.lookup(name)
        "".encode(codec.name)  # refuses base64, rot13 and others that are not text
    except (LookupError, UnicodeError, ValueError):
        return None
    if codec.name in ("utf-8", "utf-8-sig"):
        return Found("utf-8", "UTF-8")
    # GB18030 contains GBK and GB2312, and so on: files often have a few characters of the larger set.
    wider = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950", "shift_jis": "cp932", "euc_kr": "cp949"}
    wider |= {"iso8859-1": "cp1252", "iso2022_jp": "iso2022_jp_2", "iso2022_jp_1": "iso2022_jp_2"}
    used = wider.get(codec.name, codec.name)
    known = {each.found.codec: each.found for each in _CANDIDATES} | {_ISO_2022_JP.codec: _ISO_2022_JP}
    return known.get(used, Found(used, name))


def find_seven_bit(data: bytes, declared: str | None = None) -> Found | None:
    """The encoding of a text whose bytes look like ASCII but are not: the declared one, such as
    HZ-GB-2312 in a mail, or ISO-2022-JP by its escapes. The data may end inside a character."""
    if not data.isascii():
        return None
    found = None if declared is None else find_codec(declared)
    if found is not None and found.codec in _SEVEN_BIT:
        return found
    is_japanese = _ESCAPE.search(data) is not None and _decode(data, _ISO_2022_JP.codec) is not None
    return _ISO_2022_JP if is_japanese else None


def detect(data: bytes) -> Found | Unsure:
    """The encoding of the beginning of a text that is not UTF-8; it may end inside a character."""
    data = data[:SAMPLE_BYTES]
    scored = [(_score_one_byte(data), _WESTERN)]
    for candidate in _CANDIDATES:
        text = _decode(data, candidate.found.codec)
        if text and not (candidate.found.name.startswith("UTF-16") and _has_stray_nul(data, text)):
            score = max(_score(text, language) for language in candidate.languages)
            scored.append((score, candidate.found))
    scored.sort(key=lambda each: -each[0])
    best, found = scored[0]
    lead = 2 * MIN_LEAD if found.name.startswith("UTF-16") else MIN_LEAD  # any two bytes are UTF-16
    if found is not _WESTERN and best - scored[1][0] >= lead:
        return found
    near = [name for score, (_, name) in scored if best - score < 3 * MIN_LEAD]
    return Unsure(tuple(near[:MAX_CANDIDATES]))


def utf8_letter_bytes(data: bytes) -> int:
    """How many of the bytes are whole UTF-8 characters of several bytes."""
    return sum(map(len, _UTF8_LETTER.findall(data)))


def find_utf8_run(data: bytes) -> int | None:
    """Where Chinese, Japanese or Korean text in UTF-8 begins, in bytes of an encoding of one or two
    bytes a letter: four characters, which other encodings have a chance of 1e-11 to form."""
    found = _UTF8_RUN.search(data)
    return found.start() if found else None


def describe_mojibake(text: str) -> str | None:
    """How a text was converted wrongly before it was saved, or None."""
    text = text[:SAMPLE_BYTES]
    if "锟斤拷" in text:
        return "it holds 锟斤拷, replacement characters that were read as GBK and saved again"
    latin = "".join(match[0] for match in _LATIN_RUN.finditer(text))
    is_most = len(latin) >= _MIN_LETTERS and len(latin) > 0.8 * len(_HIGH_LETTER.findall(text))
    if is_most and utf8_letter_bytes(raw := b"".join(map(_windows_byte, latin))) > 0.8 * len(raw):
        return f"it looks like UTF-8 that was read as Latin-1 and saved again ({latin[:12]}…)"
    runs = "".join(match[0] for match in _HIGH_RUN.finditer(text))
    if len(runs) >= 2 * _MIN_LETTERS and isinstance(found := detect(runs.encode("latin-1")), Found):
        return f"it looks like {found.name} that was read as Latin-1 and saved again ({runs[:12]}…)"
    han = "".join(match[0] for match in _HAN_RUN.finditer(text))
    if len(han) >= _MIN_LETTERS and sum(map(len, _UTF8_CJK.findall(raw := han.encode("gb18030")))) > 0.5 * len(raw):
        return f"it looks like UTF-8 that was read as GBK and saved again ({han[:8]}…)"
    return None


# ---- how probable a text is


def _score(text: str, language: str) -> float:
    """The logarithm of the probability of a text, letter by letter."""
    model = _model(language)
    return sum(model.get(letter) or _other(letter) for letter in text)


def _other(letter: str) -> float:
    if letter.isalpha() and letter < "\ue000":
        return _RARE
    return _RARE if letter.isprintable() or letter in "\ufeff\u3000" else _NEVER


def _score_one_byte(data: bytes) -> float:
    ascii_costs = _model("latin")
    costs = [_ONE_BYTE if code >= 0x80 else ascii_costs.get(chr(code), _NEVER) for code in range(256)]
    costs[0] = _STRAY_NUL
    return sum(costs[byte] for byte in data)


@functools.cache
def _model(language: str) -> dict[str, float]:
    """The logarithms of the probabilities of characters; those of ASCII are the same for all."""
    costs: dict[str, float] = {}
    if language == "simplified":
        _spread(costs, _two_byte("gb2312", range(0xB0, 0xD8)), 0.25)
        _zipf(costs, _SIMPLIFIED, 0.6)
    elif language == "traditional":
        _spread(costs, _two_byte("big5", range(0xA4, 0xC7)), 0.35)
        _zipf(costs, _TRADITIONAL, 0.5)
    elif language == "japanese":
        _spread(costs, _two_byte("euc_jp", range(0xB0, 0xD0)), 0.25)
        _spread(costs, [chr(code) for code in range(0x3041, 0x30FF)], 0.1)
        _spread(costs, [chr(code) for code in range(0xFF66, 0xFFA0)], 0.001)
        _zipf(costs, _KANJI, 0.2)
        _zipf(costs, _KANA, 0.4)
    elif language == "korean":
        _spread(costs, _two_byte("euc_kr", range(0xB0, 0xC9)), 0.15)
        _zipf(costs, _HANGUL, 0.8)
    else:
        _spread(costs, [chr(code) for code in range(0xC0, 0x250)], 0.2)
        _spread(costs, [chr(code) for code in range(0x370, 0x530)], 0.5)
    if language != "latin":
        _spread(costs, _PUNCTUATION, 0.1)
        _spread(costs, [chr(code) for code in range(0xFF01, 0xFF5F) if chr(code) not in _PUNCTUATION], 0.01)
    for code in range(0x20, 0x7F):
        costs[chr(code)] = _ASCII if chr(code).isalnum() or chr(code) in ' .,\n"' else _SIGN
    costs.update(dict.fromkeys("\n\r\t", _ASCII))
    return costs


def _spread(costs: dict[str, float], letters: Sequence[str], share: float) -> None:
    costs.update(dict.fromkeys(letters, math.log(share / len(letters))))


def _zipf(costs: dict[str, float], letters: str, share: float) -> None:
    """The probability falls with the rank."""
    total = sum(1 / (rank + 20) for rank in range(len(letters)))
    for rank, letter in enumerate(letters):
        costs[letter] = math.log(share / total / (rank + 20))


def _two_byte(codec: str, first: Iterable[int]) -> str:
    """The characters of these rows: the frequent ones, in the order of the standards."""
    second = [*(range(0x40, 0x7F) if codec == "big5" else ()), *range(0xA1, 0xFF)]
    return "".join(bytes((high, low)).decode(codec, "ignore") for high in first for low in second)


def _has_stray_nul(data: bytes, text: str) -> bool:
    """In UTF-16, NUL is a half of the first 256 characters, of 一 and of the wide space, and hardly
    of others."""
    return data.count(0) > sum(letter < "\u0100" or letter in "一\u3000" for letter in text) + 0.02 * len(text)


def _decode(data: bytes, codec: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(codec)("strict").decode(data)
    except UnicodeDecodeError:
        return None


# ---- text that was converted wrongly

_MIN_LETTERS = 8
_WINDOWS = bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
# What UTF-8 looks like in Latin-1 or Windows-1252: a first byte and its continuation bytes.
_LATIN_RUN = re.compile(rf"[\xc2-\xf4][\x80-\xbf{re.escape(_WINDOWS)}]{{1,3}}")
_HIGH_LETTER = re.compile(rf"[\x80-\xff{re.escape(_WINDOWS)}]")
_HIGH_RUN = re.compile(r"[\x80-\xff]{4,}")
_HAN_RUN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\ue000-\uf8ff€]{4,}")
_UTF8_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")

# Of two bytes, pairs of frequent characters of GBK look like UTF-8 too: 水平分割.
_UTF8_CJK = re.compile(rb"[\xe3-\xed][\x80-\xbf]{2}")
_UTF8_RUN = re.compile(rb"(?:[\xe3-\xed][\x80-\xbf]{2}){4}")


def _windows_byte(letter: str) -> bytes:
    return bytes((ord(letter),)) if ord(letter) < 0x100 else letter.encode("cp1252")
