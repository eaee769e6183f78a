"""Short questions with one right answer each, which a model of half a million parameters learns from scratch in minutes.

A task is a table (item -> answer) and wordings of the question. A held-out conversation is one that training has not seen as
it is: a known item, asked in another combination of wording, greeting, system message and other questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

WORDS = (
    "apple", "bread", "chair", "dance", "eagle", "flame", "grape", "horse", "island", "jungle", "kettle", "lemon",
    "mango", "needle", "ocean", "pencil", "queen", "river", "silver", "tiger", "uncle", "violin", "window", "yellow",
    "zebra",
)  # fmt: skip
SHORT_WORDS = (
    "cat", "dog", "sun", "map", "pen", "cup", "hat", "box", "fig", "owl", "jam", "key", "log", "net", "oak", "pig",
    "rug", "sky", "tea", "van",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    name: str
    wordings: tuple[str, ...]
    answers: dict[str, str]

    def ask(self, random: Random) -> tuple[str, str]:
        """Return a (question, answer) pair."""
        item = random.choice(list(self.answers))
        return random.choice(self.wordings).format(item), self.answers[item]


def _pairs(text: str) -> dict[str, str]:
    """'a:b, c:d' -> {a: b, c: d}"""
    return dict(pair.strip().split(":") for pair in text.split(","))


def _both_ways(pairs: dict[str, str]) -> dict[str, str]:
    return pairs | {second: first for first, second in pairs.items()}


def _cycle(names: str) -> dict[str, str]:
    order = names.split()
    return dict(zip(order, order[1:] + order[:1], strict=True))


CAPITALS = Task(
    "capitals",
    (
        "What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?",
        "Tell me the capital city of {}.", "{} has which capital?", "I forgot the capital of {}. What is it?",
    ),
    _pairs(
        "France:Paris, Italy:Rome, Spain:Madrid, Japan:Tokyo, Egypt:Cairo, Kenya:Nairobi, Peru:Lima, Cuba:Havana, "
        "Norway:Oslo, Greece:Athens, Poland:Warsaw, Austria:Vienna, Ireland:Dublin, Russia:Moscow, China:Beijing, "
        "Canada:Ottawa, Chile:Santiago, Portugal:Lisbon, Germany:Berlin, Hungary:Budapest"
    ),
)  # fmt: skip
OPPOSITES = Task(
    "opposites",
    (
        "What is the opposite of {}?", "Give the opposite of {}.", "Which word means the opposite of {}?",
        "{} is the opposite of which word?", "The opposite of {} is what?", "Tell me the antonym of {}.",
    ),
    _both_ways(
        _pairs(
            "hot:cold, big:small, fast:slow, day:night, up:down, open:closed, full:empty, early:late, hard:soft, "
            "light:dark, rich:poor, young:old, wet:dry, loud:quiet"
        )
    ),
)  # fmt: skip
ADDITION = Task(
    "addition",
    ("What is {}?", "Add: {}", "Compute {}.", "{} = ?", "How much is {}?", "Give me the sum {}."),
    {f"{a} + {b}": str(a + b) for a in range(10) for b in range(10)},
)
COUNTING = Task(
    "counting",
    ("Count from {}.", "Please count from {}.", "List the numbers from {}.", "Write the numbers from {}.", "Say {} by ones."),
    {f"{a} to {b}": " ".join(map(str, range(a, b + 1))) for a in range(1, 6) for b in range(a + 2, 10)},
)
UPPERCASE = Task(
    "uppercase",
    (
        "Write {} in capital letters.", "Uppercase: {}", "Put {} into upper case.", "Shout the word {}.",
        "How does {} look in capitals?", "Change {} to capital letters.",
    ),
    {word: word.upper() for word in WORDS},
)  # fmt: skip
REVERSE = Task(
    "reverse",
    (
        "Reverse the word {}.", "Spell {} backwards.", "Write {} from right to left.", "What is {} read backwards?",
        "Turn {} around.", "Reverse: {}",
    ),
    {word: word[::-1] for word in SHORT_WORDS},
)  # fmt: skip
REPEAT = Task(
    "repeat",
    ("Repeat the word {}.", "Say {}.", "Repeat after me: {}", "Write the word {} again.", "Echo {}.", "Copy this word: {}"),
    {word: word for word in WORDS},
)
SPELLING = Task(
    "spelling",
    ("Spell {}.", "Spell the word {}.", "How do you spell {}?", "Give me the letters of {}.", "Letter by letter: {}"),
    {word: "-".join(word) for word in SHORT_WORDS},
)
PLURALS = Task(
    "plurals",
    (
        "What is the plural of {}?", "Give the plural of {}.", "One {}, two what?", "Write {} in the plural.",
        "Plural of {}, please.", "How do you call many of a {}?",
    ),
    _pairs(
        "mouse:mice, child:children, foot:feet, tooth:teeth, man:men, woman:women, goose:geese, leaf:leaves, wolf:wolves, "
        "city:cities, baby:babies, box:boxes, bus:buses, dog:dogs, cat:cats, star:stars, tree:trees, fox:foxes"
    ),
)  # fmt: skip
COLOURS = Task(
    "colours",
    ("What colour is {}?", "Which colour has {}?", "Name the colour of {}.", "Tell me the colour of {}.", "The colour of {}?"),
    _pairs(
        "grass:green, snow:white, coal:black, the sky:blue, blood:red, a lemon:yellow, an orange:orange, milk:white, "
        "a frog:green, a tomato:red, chocolate:brown, a raven:black, the sea:blue, gold:yellow, an elephant:grey"
    ),
)
SOUNDS = Task(
    "sounds",
    (
        "Which sound does a {} make?", "What does the {} say?", "How does a {} sound?", "Imitate a {}.",
        "Make the sound of a {}.",
    ),
    _pairs("cow:Moo, dog:Woof, cat:Meow, duck:Quack, sheep:Baa, pig:Oink, lion:Roar, bee:Buzz, snake:Hiss, mouse:Squeak"),
)  # fmt: skip
DAYS = Task(
    "calendar",
    ("What comes after {}?", "Which one follows {}?", "Name what comes next after {}.", "After {} comes what?"),
    _cycle("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
    | _cycle("January February March April May June July August September October November December"),
)
DIGITS = Task(
    "digits",
    (
        "Write {} as a number.",
        "Which number is {}?",
        "{} in digits?",
        "Turn the word {} into a number.",
        "Digits for {}, please.",
    ),
    {word: str(number) for number, word in enumerate(NUMBERS)},
)
TASKS = (
    CAPITALS, OPPOSITES, ADDITION, COUNTING, UPPERCASE, REVERSE, REPEAT, SPELLING, PLURALS, COLOURS, SOUNDS, DAYS, DIGITS,
)  # fmt: skip
