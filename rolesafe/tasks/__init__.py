"""A seeded generator of short English rule-following tasks with benign twins.

What is held out in the test split:

- **phrasings** of rules, questions, orders and "ignore previous" openings are disjoint from training: they are other
  combinations of words that training contains (the bare fact "The gate code is gold." is the only shared frame);
- **pairs** of a place and its secret, of the system's word and the attacker's, of an answer and the witness word: no
  pair of the test split occurs as such a pair in training, not even in conversations without a rule;
- filler sentences pair other adjectives with other nouns.

What is not: single words. A model trained from scratch on a word-level vocabulary cannot know a word it has never
seen, and one that has seen a word in conversations without rules only has learned to copy it from whoever says it,
which would be measured as a successful attack. Sentence order, chat format and reply forms are the same too.
"""

from rolesafe.tasks.example import Example, Kind, Message, TrainingRecord
from rolesafe.tasks.generator import FAMILIES, generate, training_conversations, training_records, vocabulary
from rolesafe.tasks.words import Split, filler

__all__ = [
    "FAMILIES",
    "Example",
    "Kind",
    "Message",
    "Split",
    "TrainingRecord",
    "filler",
    "generate",
    "training_conversations",
    "training_records",
    "vocabulary",
]
