"""Made-up words for the training generator.

Every word the training data holds is built here from syllables or from random letters; no word of the
committed test set comes from this file, and tests/test_demo.py checks that. The lexicon is seeded, so it
is the same on every machine. The random letters and digits make the model copy what it sees instead of
knowing words by heart, which is why the real paths, agents and names of the test set work as well.
"""

from __future__ import annotations

import random
import string

ONSETS = (
    "b c d f g h j k l m n p r s t v w z ch sh th br cr dr fr gr pr tr bl cl fl gl pl sl st sp sc sk sm sn sw qu"
).split()
NUCLEI = "a e i o u a e i o u a e i o u ai ea ee ie oo ou y io".split()
CODAS = ["", "", "", "", *"n n r r l s t m d ck nd nt st ng rt x p ll ss ct rm".split()]
COMMON = (
    "ip user time method path protocol status bytes referer agent http https get post json log line table what give"
).split()
LEXICON_SIZE = 8000
LEXICON_SEED = 20240607


def syllable(rng: random.Random) -> str:
    """One pronounceable syllable."""
    return rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS)


def build_lexicon() -> list[str]:
    """The fixed list of lower-case words of five to eleven letters."""
    rng = random.Random(LEXICON_SEED)
    words: set[str] = set()
    while len(words) < LEXICON_SIZE:
        candidate = "".join(syllable(rng) for _ in range(rng.choice((2, 2, 3))))
        if 5 <= len(candidate) <= 11:
            words.add(candidate)
    return sorted(words)


LEXICON = build_lexicon()


def letters(rng: random.Random, low: int, high: int) -> str:
    """Random letters in one of three casings."""
    alphabet = rng.choice((string.ascii_lowercase, string.ascii_uppercase, string.ascii_letters))
    return "".join(rng.choices(alphabet, k=rng.randint(low, high)))


def digits(rng: random.Random, low: int, high: int) -> str:
    """A random digit string, leading zeros allowed."""
    return "".join(rng.choices(string.digits, k=rng.randint(low, high)))


def compound(rng: random.Random) -> str:
    """A word with one of the prompts' own words inside: those must be copied too where they stand in a value."""
    before, after = (syllable(rng) if rng.random() < 0.5 else "" for _ in range(2))
    return before + rng.choice(COMMON) + after


def lower(rng: random.Random) -> str:
    """A lower-case word: mostly of the lexicon, sometimes a compound, one syllable or random letters."""
    draw = rng.random()
    if draw < 0.05:
        return compound(rng)
    if draw < 0.75:
        return rng.choice(LEXICON)
    if draw < 0.85:
        return syllable(rng)
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))


def title(rng: random.Random) -> str:
    """A capitalised word."""
    return lower(rng).capitalize()


def mixed(rng: random.Random) -> str:
    """A word in any casing: lower, Title, CamelCase, UPPER or random letters."""
    draw = rng.random()
    if draw < 0.35:
        return lower(rng)
    if draw < 0.70:
        return title(rng)
    if draw < 0.82:
        return title(rng) + title(rng)
    if draw < 0.92:
        return letters(rng, 1, 6)
    return lower(rng).upper()
