"""The words of the field, the shapes of error messages, links that lead to files."""

import re

import pytest
from source_rules import all_messages, fail_on, without_exceptions
from source_scan import ROOT, files, read, short

WORDS = {  # what is not written: what to write instead
    r"rooms?": "scratch, staging buffer, space",
    r"houses?": "architecture",
    r"lends?|lending|lent|loans?|lenders?": "exports a buffer, DLPackExchange, PreparedStep",
    r"borrow(?:s|ed|ing)?": "acquire",
    r"held": "bound, kept, stored",
    r"races?|races|racing": "benchmark, comparison",
    r"contests?|contenders?": "comparison, implementation",
    r"peers?": "other implementations, other ranks",
    r"limits?": "bandwidth bound, maximum; Limitations as a heading",
    r"strips?": "shard slice",
    r"stretch(?:es)?": "range",
    r"told": "say who learns what",
    r"agreed": "checked on all ranks",
    r"seats?|seated": "slot",
    r"codes": "dtypes, formats, stored values",
    r"anew": "again, from scratch",
    r"behind": "after",
    r"alike": "both, the same",
    r"of another": "different, does not match",
    r"has not(?! (?:yet|been|\w+ed|set|said)\b)": "has no, lacks",
}
BANNED = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(WORDS)})(?![A-Za-z])", re.I)
LEGITIMATE = [  # another meaning of the word, which is the standard term
    (r"\.[lr]?strip\(", "str.strip"),
    (r"race condition|data race", "of threads"),
    (r"held[-_ ]out", "data that is not trained on"),
    (r"\b(?:GIL|lock) (?:is |is not |must be )?held\b", "of a lock"),
    (r"\b(?:exit|error|status|return|quantization) codes\b", "numbers that stand for something"),
    (
        r"RLIMIT\w*|threadpool_limits|OMP_THREAD_LIMIT|omp_get_thread_limit",
        "names of the system and of a library",
    ),
    (r"\b(?:cgroup|time|memory|size|recursion|CPU)[ _]limits?\b", "a maximum"),
]
LEGITIMATE_IN = {  # where a word has a meaning of its own
    ("codes", "csrc/kernels/formats/"): "the integers that a quantized format stores",
    ("codes", "_ext/dlpack_adapter.pxi"): "the type codes of DLPack",
    (
        "codes",
        "_torch/state.py",
    ): "as in csrc/kernels/formats: exp_avg_code",
    ("limit", "_cgroup.py"): "what Linux calls the quota of a control group",
    ("limits", "_cgroup.py"): "the same",
}
ALLOWED = re.compile("|".join(pattern for pattern, _ in LEGITIMATE), re.I)
PROSE = ["src", "csrc", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benches"]
TEXTS = {".py", ".pyi", ".pyx", ".pxi", ".pxd", ".c", ".h", ".inc", ".md"}


def test_the_words_are_those_of_the_field():
    broken = []
    for path in files(*PROSE, "examples", suffixes=TEXTS):
        for number, line in enumerate(read(path).split("\n"), 1):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", ALLOWED.sub("", line))
            for match in BANNED.finditer(words):
                if any(match[0] == w and short(path).startswith(p) for w, p in LEGITIMATE_IN):
                    continue
                instead = next(text for word, text in WORDS.items() if matches(word, match))
                broken.append(f"{short(path)}:{number}: {match[0]!r} ({instead}): {line.strip()}")
    fail_on(broken, "The vocabulary is that of docs/architecture.md")


def matches(word, match):
    return re.match(rf"(?:{word})(?![A-Za-z])", match.string[match.start() :], re.I)


# ---- messages

SHAPES = [  # one of these, with the argument or the file first
    r"\bmust (?:not )?(?:be|have|match|contain|return|share|hold|name|start|end|come|give|fit)\b",
    r"; got \{",
    r"\bcannot\b",
    r"\b(?:does|do) not (?:match|support|exist|contain|have|fit|name|share|agree)\b",
    r"\b(?:is|are) not (?:supported|available|installed|a|an|found|finite|writable)\b",
    r"\b(?:is|are) (?:empty|missing|corrupt|read-only|too \w+)\b",
    r"\b(?:unknown|unexpected|unsupported|requires?|needs?|mixes|differ\w*|overlaps?|missing)\b",
    r"\b(?:already exists|stores|mismatch|has an?|has no|never ends|became|failed)\b",
    r"\b(?:was|were)(?: not)? saved\b|\bthe checkpoint has\b|\bthis (?:optimizer|release)\b",
    r"\bno such\b|\bnot found\b|\bnot implemented\b|\bnot enough\b",
]
OLD_FORMS = r"; expected|\bis of type\b|\bthere is no(?:ne)?\b|\bit is no\b"
# In `FILE is corrupt or not a fused-adamw checkpoint (DETAIL)` the detail has any shape.
DETAILS = (
    "_io/safetensors_stream.py",
    "_io/checkpoint_schema.py",
)
OTHER_SHAPES = {  # "file: text": why it has none of the shapes
    "_distributed/agreement.py: rank {}: {}": "puts the rank before the message of its error",
    "bench/runner.py: case {} {}": "the second part says what the case needs",
}


def test_messages_say_what_must_be():
    broken = {
        f"{m.where}: {m.text}": f"line {m.line}"
        for m in all_messages()
        if m.where not in DETAILS
        if re.search(OLD_FORMS, m.text) or not any(re.search(x, m.text, re.I) for x in SHAPES)
    }
    rule = "A message is `<argument> must be <what>; got <what>`, or has another shape of SHAPES"
    fail_on(without_exceptions(broken, OTHER_SHAPES), rule)


WITHOUT_GOT: dict[str, str] = {}  # "file: text": why it does not repeat what it was given


def test_messages_say_what_was_found():
    """What was found follows `must be ...`, or stands before it in parentheses."""
    found = r"must be .*(?:; got |[;:][^;:]*\{)|\(\{\}\) must be"
    broken = {
        f"{m.where}: {m.text}": f"line {m.line}"
        for m in all_messages()
        if "must be" in m.text and not re.search(found, m.text)
    }
    rule = "`<argument> must be <what>` is followed by `; got <what>`"
    fail_on(without_exceptions(broken, WITHOUT_GOT), rule)


# ---- the documents


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_in_the_documents_lead_to_files(document):
    broken = []
    for path in files(document, suffixes={".md"}):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(path)):
            if (ROOT / "docs").exists() and not (path.parent / target).exists():
                broken.append(f"{short(path)}: {target}")
    fail_on(broken, "A link leads to a file of the repository")
