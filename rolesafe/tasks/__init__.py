"""A seeded generator of short English rule-following tasks with benign twins.

What is held out in the test split:

- **phrasings** of rules, questions, orders and "ignore previous" openings are disjoint from training: they are other
  combinations of words that training contains (the bare fact "The gate code is gold." is the only shared frame);
- **words**: places, secrets, required words and witness words are disjoint wherever a rule applies. A model trained
  from scratch cannot know a word that it has never seen, so the test words do occur in training, but only in neutral
  conversations without rule, refusal or injection;
- filler sentences pair other adjectives with other nouns.

What is not: the frames' single words, the sentence order, the chat format and the reply forms are the same.
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
