"""Lack of memory in the middle of an attack."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rolesafe.attacks import AttackConfig, AttackResult, DilutionConfig, Found, SearchContext
from rolesafe.attacks.memory import Batches, OutOfMemoryError, is_out_of_memory
from tests.attacks.engine import EXAMPLES, TOKENIZER, found, giving_in_to, run
from tests.attacks.stubs import Scripted

CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 1 GiB"


class Tight(torch.nn.Module):
    """Follow a script with memory for `room` conversations, and for none that contains `heavy`."""

    def __init__(self, room: int, heavy: str = "nowhere", error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.inner = Scripted(giving_in_to("Done"))
        self.room, self.heavy, self.error = room, heavy, error
        self.sizes: list[int] = []

    def generate(self, input_ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.room or any(self.heavy in t for t in TOKENIZER.batch_decode(input_ids)):
            raise self.error(CUDA_SAYS)
        return self.inner.generate(input_ids=input_ids, **keywords)


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError, MemoryError])
def test_memory_error_halves_batches(error: type[Exception]) -> None:
    config = DilutionConfig(batch_size=12, max_new_tokens=12)
    model = Tight(3, error=error)
    result = run(model, config)
    assert model.sizes == [12, 6, 3, 3, 3, 3]
    assert result == run(Scripted(giving_in_to("Done")), config)
    assert not result.failed


def test_memory_error_in_batch_of_one_is_failed() -> None:
    heavy = EXAMPLES[3]
    config = DilutionConfig(batch_size=4, max_new_tokens=12)
    result = run(Tight(4, heavy.messages[0]["content"].replace(".", " .")), config)
    reason = "out of memory with a batch of 1: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert result.failed == ((heavy.id, reason),)
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES if e is not heavy]
    assert result.complete
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    again = run(Scripted(giving_in_to("Done")), config, done=result)  # on a machine with more memory
    assert again == run(Scripted(giving_in_to("Done")), config)


def test_memory_error_in_search_halves_its_batches(register: Callable[..., AttackConfig]) -> None:
    sizes: list[int] = []

    def search(context: SearchContext) -> Found:
        sizes.append(context.batch_size)
        if context.batch_size > 2 or context.example is EXAMPLES[1]:
            raise torch.cuda.OutOfMemoryError(CUDA_SAYS)
        return found(context.example)

    result = run(Scripted(lambda prompt: "Done."), register(search))
    assert sizes[:5] == [8, 4, 2, 2, 1]
    assert set(sizes[5:]) == {1}
    assert [name for name, _ in result.failed] == [EXAMPLES[1].id]
    assert len(result.outcomes) == len(EXAMPLES) - 1


def test_memory_error_in_clean_check_halves_batches() -> None:
    config = DilutionConfig(batch_size=12, max_new_tokens=12)
    assert run(Tight(2), config, check_goal=True).rate.n == len(EXAMPLES)


def test_other_runtime_errors_are_raised() -> None:
    class Broken(Tight):
        def generate(self, input_ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(Broken(4), DilutionConfig())


def test_is_out_of_memory_knows_allocator_messages() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError(CUDA_SAYS))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("memory layout"))


def test_memory_error_of_torch_halves_batches() -> None:
    """A tensor of 4 EiB makes torch raise its own error."""

    def ask(size: int) -> int:
        if size > 2:
            torch.empty(2**62, dtype=torch.uint8)
        return size

    assert Batches(8).run(ask) == 2
    batches = Batches(8)
    assert batches.run(ask, 5) == 2
    with pytest.raises(OutOfMemoryError):
        Batches(1).run(lambda size: torch.empty(2**62, dtype=torch.uint8))
