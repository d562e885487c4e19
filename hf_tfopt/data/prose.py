"""Documentation markup -> English prose: what a docstring says, without what it shows.

Code, doctests, tables, signatures, headings, links and inline markup go; the sentences stay, in
paragraphs.
"""

import inspect
import re
from collections.abc import Iterator
from itertools import pairwise

# The body of these directives is prose; that of every other one (code, math, figures) is not.
_PROSE_DIRECTIVES = ("note", "warning", "tip", "important", "hint", "caution", "attention")
_PROSELESS_SECTIONS = ("see also", "references", "methods", "authors", "author", "license")
_TYPE_FIELDS = ("type", "rtype", "vartype")
_FUNCTION_WORDS = (
    "a about after all also an and any are as at be because been before between both but by can "
    "could did do does each either every for from has have how if in instead into is it its may "
    "more most must neither no not of on once one only or other otherwise over same should since "
    "so some such than that the their them then there these they this those through to under "
    "unless until used using was we were what when where whether which while who why will with "
    "within without would you your"
)
_STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
# Left where something that cannot be read as words was cut out: such sentences are dropped.
_HOLE = "\x00"

_DIRECTIVE = re.compile(r"\.\. +(?:([\w:-]+?)::)? *(.*)$")
_UNDERLINE = re.compile(r"([=\-~^\"'*#+.])\1{2,}$")
_RULE = re.compile(r"[-=+|:~^_*#. ]{4,}$")
_FIELD = re.compile(r"[:@](\w+)(?: [^:]*)?:(?: |$)")
_TYPED_ARGUMENT = re.compile(
    r"(?:- )?[*`\"']*[\w.]+[*`\"']*(?:, [*`]*\w+[*`]*)*:? ?\(.*?\)(?: --?| ?:)(?: |$)"
)
_PLAIN_ARGUMENT = re.compile(r"(?:- )?[*`\"']*[a-z_][\w.]*[*`\"']*(?: ?:| --?)(?: |$)")
_QUOTED_TYPE = re.compile(r"\[?`[^`]+`\]?(?:,? (?:or|of) \[?`[^`]+`\]?)*(?:, \*optional\*)? ?: ")
_RETURNS = re.compile(r"(?:Returns?|Yields?|Raises)(?: ?: *|$)(?:[`\w.\[\], |]{1,40}: )?")
_LABEL = re.compile(r"(?:Args|Examples?|Notes?|NOTE|TODO|FIXME|XXX|Warning)(?:\([^)]*\))? ?: ")
_BULLET = re.compile(r"(?:[-*+•o]|\(?\d{1,2}[.)]|\(?[a-z]\)) +")

# (a character without which the pattern cannot match, the pattern, what takes its place)
_INLINE = [
    (trigger, re.compile(pattern), replacement)
    for trigger, pattern, replacement in (
        ("!", r"!\[[^\]]*\]\([^)]*\)", " "),  # Markdown image
        ("(", r"\[([^\]\[]+)\]\([^)\s]*\)", r"\1"),  # Markdown link
        ("`", r":(?:math|eq|cite\w*|footcite\w*):`[^`]*`", _HOLE),
        ("`", r":[\w:+.-]+:`[~!]?([^`<]*?)(?: *<[^>`]*>)?`", r"\1"),  # reST role
        ("<", r"`([^`<]+?) *<[^>`]*>`_{0,2}", r"\1"),  # reST link
        ("/", r"<?\b(?:https?|ftp|file)://\S+", _HOLE),
        ("@", r"\S+@\S+\.\w+", _HOLE),  # e-mail
        ("<", r"</?[A-Za-z][\w-]*(?: [^<>]*)?/?>", " "),  # HTML tag
        ("]", r" ?\[(?:#?\w{0,12}|\d+(?:, ?\d+)*)\]_", ""),  # reST citation
        ("$", r"\$\$?[^$]{1,200}\$\$?", _HOLE),  # TeX
        ("`", r"`{1,2}([^`]*)`{1,2}_{0,2}", r"\1"),
        ("]", r"\[([A-Za-z_~][\w.~]*)\]", r"\1"),  # cross reference
        ("*", r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}(?![\w*])", r"\1"),
        ("~", r"~(?=[A-Za-z_]+\.)", ""),
        ("\\", r"\\(?=[ _*`])", ""),
        ("-", r"(?:^| )-{3,}(?= |$)", " "),
        ("(", r"\( *\)", ""),
        (" ", r" +(?=[,.;:!?)](?: |$))", ""),
    )
]
_ABBREVIATION = r"(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)"
_SENTENCE_END = re.compile(rf"(?<=[.!?]){_ABBREVIATION} +(?=[\"'(\[]*[A-Z0-9])")
_PLAIN_WORD = re.compile(r"(?<!\S)[\"'(]*[A-Za-z]+(?:['’-][A-Za-z]+)*[\"')]*[.,;:!?]*[\"')]*(?!\S)")
_LEGAL = re.compile(r"(?i)\b(?:copyright|licensed? under|warrant(?:y|ies)|all rights reserved)\b")


def paragraphs(documentation: str) -> list[list[str]]:
    """The English sentences of one documentation text (reST, NumPy, Google or Markdown style).

    Args:
        documentation: a docstring or a comment, as it stands in the source.

    Returns:
        One list of sentences for each paragraph, bullet or described argument that has any.
    """
    found: list[list[str]] = []
    for block in _blocks(inspect.cleandoc(documentation).splitlines()):
        sentences = [s for s in _SENTENCE_END.split(_plain(block)) if is_english(s)]
        if sentences:
            found.append(sentences)
    return found


def is_english(sentence: str) -> bool:
    """Whether a sentence is mostly plain words, with English function words among them."""
    words = sentence.lower().split()
    if len(words) < 3 or _HOLE in sentence or "{" in sentence or _LEGAL.search(sentence):
        return False
    num_stop = sum(word.strip(".,;:()\"'") in _STOP_WORDS for word in words)
    if num_stop < 0.15 * len(words):
        return False
    return len(_PLAIN_WORD.findall(sentence)) >= 0.7 * len(words)


def _plain(block: str) -> str:
    """A paragraph without inline markup."""
    for trigger, pattern, replacement in _INLINE:
        if trigger in block:
            block = pattern.sub(replacement, block)
    return " ".join(block.split())


def _blocks(lines: list[str]) -> Iterator[str]:
    """Paragraphs, each as one line."""
    block: list[str] = []
    for line in _prose_lines(lines):
        if line.startswith("\n") and block:
            yield " ".join(block)
            block = []
        if line.strip():
            block.append(line.strip())
    if block:
        yield " ".join(block)


def _prose_lines(lines: list[str]) -> Iterator[str]:
    """The lines of prose; one that begins with a line feed begins a new paragraph."""
    block_indent: int | None = None  # a block that is skipped ends where lines stand at this again
    is_fenced = is_session = is_proseless = False
    for raw, following in pairwise([*lines, ""]):
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if line.startswith(("```", "~~~")):
            is_fenced = not is_fenced
        elif not line:
            is_session = False
            yield "\n"
        elif is_fenced or is_session or (block_indent is not None and indent > block_indent):
            continue
        elif _UNDERLINE.match(following.strip()):  # a heading
            is_proseless = line.lower() in _PROSELESS_SECTIONS
            yield "\n"
        elif line.startswith((">>>", "In [", "$ ")):
            is_session = True
            yield "\n"
        elif not (is_proseless or line[0] in "|+" or "   " in line or _RULE.match(line)):
            directive = _DIRECTIVE.match(line)
            is_prose = directive is None or directive[1] in _PROSE_DIRECTIVES
            block_indent = indent if line.endswith("::") or not is_prose else None
            deeper = len(following) - len(following.lstrip()) > indent
            if directive:
                yield "\n" + (directive[2] if is_prose else "")
            else:
                yield _described(line, deeper)


def _described(line: str, deeper: bool) -> str:
    """The line without the name and type of what it describes; `deeper`: the next is indented."""
    field = _FIELD.match(line)
    if field:
        return "\n" + ("" if field[1] in _TYPE_FIELDS else line[field.end() :])
    returns = _RETURNS.match(line) or _LABEL.match(line)
    if returns:
        return "\n" + line[returns.end() :]
    num_words = line.count(" ") + 1
    if line.endswith(":") and num_words <= 3:  # a section of the Google style
        return "\n"
    bullet = _BULLET.match(line)
    # NumPy's `name : type`, or a term of a definition list
    if deeper and not bullet and line[-1] not in ".,;!?" and (num_words <= 5 or " : " in line):
        return "\n"
    arguments = (_TYPED_ARGUMENT, _PLAIN_ARGUMENT, _QUOTED_TYPE)
    prefix = next(filter(None, (pattern.match(line) for pattern in arguments)), bullet)
    return "\n" + line[prefix.end() :] if prefix else line.removesuffix("::")
