"""Rule-following tasks: a seeded generator of short English conversations, probes, and loaders of published sets.

- :func:`generate`: examples of five rule families with their benign twins, to evaluate and attack;
  :func:`training_conversations` and :func:`training_records`: conversations of the same families to train on.
- :class:`Difficulty`: dials: number of rules, length, earlier turns, tool output, place of the system text.
- :func:`probes`: SEP-style pairs with a witness; :func:`trigger_examples`: harmless text that looks like an attack.
- :func:`load_set`: published sets, from a file or the hub, as the same :class:`Example`;
  see :mod:`rolesafe.tasks.sets`.

Held out in the test split of the generator:

- **phrasings** of rules, questions, orders, triggers and "ignore previous" openings are disjoint from training: they
  are other combinations of words that training contains (the bare fact "The gate code is gold." is the only shared
  frame);
- **pairs** of a place and its secret, of the system's word and the attacker's, of an answer and the witness word, of
  a word to say and one that is mentioned: no pair of the test split occurs as such a pair in training, not even in
  conversations without a rule;
- filler sentences pair other adjectives with other nouns.

Shared by both splits: single words, sentence order, chat format, reply forms, and the assistant's part of earlier
turns.
A model trained from scratch on a word-level vocabulary cannot know an unseen word. A word seen only in conversations
without rules would be copied from any speaker, which would count as a successful attack.
"""

from rolesafe.tasks.difficulty import Difficulty, placed
from rolesafe.tasks.example import Example, Kind, Message, TrainingRecord
from rolesafe.tasks.generator import FAMILIES, generate, training_conversations, training_records, vocabulary
from rolesafe.tasks.probes import probes, trigger_examples
from rolesafe.tasks.sets import SETS, load_set
from rolesafe.tasks.words import Split, filler

__all__ = [
    "FAMILIES",
    "SETS",
    "Difficulty",
    "Example",
    "Kind",
    "Message",
    "Split",
    "TrainingRecord",
    "filler",
    "generate",
    "load_set",
    "placed",
    "probes",
    "training_conversations",
    "training_records",
    "trigger_examples",
    "vocabulary",
]
