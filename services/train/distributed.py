"""Run a train job on many processes: `torchrun … -m services.train.distributed JOB`.

All processes run the job's segments together and average their gradients. Only the
first process writes to the store and the ledger. Told to end, all processes end after the
same step, and the first keeps a checkpoint. The same command goes on there; after a kill it goes on
after the last finished segment.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import torch
from torch import distributed

from services.train.stage import TrainStage
from shared.computing import prepare
from shared.contracts.train import TrainRequest
from shared.errors import HandedBackError, JobError
from shared.jobs import Context, Ledger, NoLeases, Reporter, execute
from shared.jobs.stage import FINISH
from shared.logging import configure_logging
from shared.settings import Settings, settings
from shared.storage import Store, StoreView, open_store


class ReadOnlyStore(StoreView):
    """A store that ignores puts and deletes, for all processes but the first."""

    def put(self, key: str, data: bytes) -> str:
        return ""

    def put_file(self, key: str, path: Path) -> str:
        return ""

    def delete(self, key: str) -> None:
        pass


def run(job: str, store: Store, config: Settings) -> str:
    """Run a submitted train job in an initialized process group, and return its state.

    Raises:
        JobError: a unit failed; the ledger holds the error.
    """
    first = distributed.get_rank() == 0
    ledger, stage = Ledger(store), TrainStage()
    while True:
        distributed.barrier()
        _, units = ledger.runnable(job)
        plan = ledger.plan(job)
        distributed.barrier()
        if not units:
            return ledger.status(job).state
        unit = units[0]
        if first:
            execute(ledger, stage, job, unit, leases=NoLeases(), reporter=Reporter(), config=config)
            if unit in ledger.runnable(job)[1]:
                raise JobError(f"{job}: {unit} failed; see jobs/{job}/attempts/{unit}.json")
        elif plan is not None and unit != FINISH:
            shard = plan.find(unit)[1]
            request = TrainRequest.model_validate(ledger.request(job))
            context = Context(
                ReadOnlyStore(store),
                threads=config.threads,
                device=config.device if config.device != "auto" else "cpu",
                report=lambda *_: None,
            )
            stage.run(request, shard, context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="id of a submitted train job")
    parser.add_argument("--store", help="directory or s3://bucket/prefix; default HTD_STORE")
    arguments = parser.parse_args()
    config = settings()
    configure_logging(config.log_level, config.log_format)
    prepare(config.threads)
    signal.signal(signal.SIGTERM, _hand_back)
    gpu = torch.cuda.is_available()
    # What processes agree on goes by gloo: it sees at once that another has ended, and waits half
    # an hour for the first one to write.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    if gpu:
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
        config = config.model_copy(update={"device": f"cuda:{local}"})
    try:
        run(arguments.job, open_store(arguments.store), config)
    finally:
        distributed.destroy_process_group()


def _hand_back(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise HandedBackError(128 + number)  # not 0: a cluster has to start the process again


if __name__ == "__main__":
    main()
