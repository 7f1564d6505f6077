"""DDP, FSDP2 and DeepSpeed on two processes compute what one computes; saved on two, loaded on one."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rolesafe
from rolesafe import RoleConfig
from rolesafe.workers import PRELOADED
from tests.models import plain, random_batch, role_model

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without distributed")

CONFIG = RoleConfig.preset("channel", share=0.3)
STEPS = 2
ENGINES = ("ddp", "fsdp2")


def batches(step: int) -> list[dict[str, Tensor]]:
    """Return the batches of both processes."""
    return [random_batch(padding=0, seed=10 * step + rank) for rank in (0, 1)]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    roles = [p for _, p in rolesafe.named_role_parameters(model)]
    ids = {id(p) for p in roles}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return torch.optim.SGD([{"params": roles, "lr": 0.5}, {"params": rest, "lr": 0.1}])


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch, labels=batch["input_ids"], use_cache=False).loss
    return loss


def trained_on_one_process() -> Any:
    model = role_model("llama", CONFIG).train()
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        for batch in batches(step):
            (loss_of(model, batch) / 2).backward()
        optimizer.step()
    return model


def shard(engine: str, model: Any) -> Any:
    if engine == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(engine: str, model: Any) -> dict[str, Tensor] | None:
    """Return the whole state dict on rank 0, for `save_pretrained`; None where the model holds it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if engine == "ddp":
        return None
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def run(rank: int, directory: str) -> None:
    """Train, check and save with every engine, in one of two processes."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    try:
        for engine in ENGINES:
            model = role_model("llama", CONFIG).train()
            sharded = shard(engine, model)
            optimizer = optimizer_of(sharded)
            for step in range(STEPS):
                optimizer.zero_grad()
                loss_of(sharded, batches(step)[rank]).backward()
                optimizer.step()
            try:
                sharded(**plain(random_batch(padding=0)))
                said = "nothing"
            except ValueError as error:
                said = str(error)
            states = whole(engine, model)
            if rank == 0:
                model.save_pretrained(f"{directory}/{engine}", **({} if states is None else {"state_dict": states}))
            Path(directory, f"{engine}-{rank}.json").write_text(json.dumps(said))
            dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start both processes from the fork server of `rolesafe.workers`: they share the imports of torch and llama."""
    directory = tmp_path_factory.mktemp("engines")
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    torch.multiprocessing.start_processes(run, (str(directory),), nprocs=2, start_method="forkserver")
    return directory


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one_and_load_on_one(two_processes: Path, engine: str) -> None:
    expected, start = trained_on_one_process(), role_model("llama", CONFIG)
    loaded = rolesafe.from_pretrained(two_processes / engine)
    first = dict(rolesafe.named_role_parameters(start))
    for (name, p), (_, q) in zip(expected.named_parameters(), loaded.named_parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-5, msg=name)
        assert name not in first or not torch.equal(first[name], q)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rank", [0, 1])
def test_missing_roles_raise_on_every_process(two_processes: Path, engine: str, rank: int) -> None:
    said = json.loads((two_processes / f"{engine}-{rank}.json").read_text())
    assert said.startswith("`role_ids` did not reach LlamaModel")


# ------------------------------------------------------------------------------------------------------------ DeepSpeed


def adam_of(model: nn.Module) -> torch.optim.Optimizer:
    groups = optimizer_of(model).param_groups
    return torch.optim.AdamW(
        [{"params": group["params"], "lr": rate} for group, rate in zip(groups, (0.05, 0.01), strict=True)]
    )


def run_deepspeed(rank: int, stage: int, directory: str) -> None:
    """Train with ZeRO in one of two processes, and write the loss and the error without roles."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    import deepspeed

    model = role_model("llama", CONFIG).train()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine = deepspeed.initialize(model=model, optimizer=adam_of(model), config=config)[0]
    for step in range(STEPS):
        engine.backward(loss_of(engine, batches(step)[rank]))
        engine.step()
    loss = loss_of(engine, batches(STEPS)[0]).item()
    try:
        engine(**plain(batches(STEPS)[0]))
        said = "nothing"
    except ValueError as error:
        said = str(error)
    Path(directory, f"{rank}.json").write_text(json.dumps([loss, said]))
    torch.distributed.barrier()


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_as_one_process(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    torch.multiprocessing.spawn(run_deepspeed, (stage, str(tmp_path)), nprocs=2)
    model = role_model("llama", CONFIG).train()
    optimizer = adam_of(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        for batch in batches(step):
            (loss_of(model, batch) / 2).backward()
        optimizer.step()
    expected = loss_of(model, batches(STEPS)[0]).item()
    for rank in (0, 1):
        loss, said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert loss == pytest.approx(expected, abs=5e-4)
        assert said.startswith("`role_ids` did not reach LlamaModel")
