"""lm-eval: a task of one's own with its model for OpenAI-compatible chat servers, under a system instruction."""

import json
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

folder = Path(os.environ["CLIENTS_FOLDER"])
rows = [{"question": f"Say something about {thing}.", "answer": thing} for thing in ("rain", "bread")]
(folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
(folder / "words.yaml").write_text(
    f"""
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16}}
metric_list: [{{metric: exact_match}}]
"""
)
found = lm_eval.simple_evaluate(
    model="local-chat-completions",
    model_args={
        "model": os.environ["CLIENTS_MODEL"],
        "base_url": os.environ["CLIENTS_URL"] + "/chat/completions",
        "num_concurrent": 2,
    },
    tasks=["words"],
    task_manager=TaskManager(include_path=str(folder)),
    apply_chat_template=True,
    system_instruction="Be brief.",
)
print(found["results"])
