"""How well do clusters of an encoder's features agree with the known tissue types?

    python benchmarks/encoder_ari.py STORE COHORT [--encoders random embedded] [--k 6] [--seeds 3]

Embeds and clusters an annotated cohort with each encoder, and prints the adjusted Rand index
between the clusters and the main tissue type of each patch: on training and on held-out slides,
for all patches and for pure patches (at least 90 % of one tissue type). The figures are mean and
sample standard deviation over seeds of the encoder's training and of the clustering.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import adjusted_rand_score

from heterotissue.stages import load_stage
from shared.computing import prepare
from shared.contracts.base import Request
from shared.contracts.cluster import ClusterRequest, cluster_key
from shared.contracts.embed import EmbedRequest
from shared.contracts.ingest import CohortRecord, cohort_key, patches_key
from shared.contracts.regions import RegionRule
from shared.jobs import Ledger, run_job
from shared.storage import Store, open_store


def run(store: Store, request: Request) -> None:
    ledger = Ledger(store)
    status = run_job(ledger, load_stage(request.stage), ledger.submit(request))
    if status.state != "done":
        raise SystemExit(f"{request.stage} ended {status.state}: {status.failed}")


def agreement(store: Store, cohort: str, name: str, slides: list[str]) -> dict[str, float]:
    """Return the adjusted Rand index of a clustering on some slides, with the patch counts.

    Args:
        store: holds the cohort and the clustering.
        cohort: name of the cohort.
        name: name of the clustering.
        slides: names of the slides.
    """
    truth, found, purity = [], [], []
    for slide in slides:
        fractions = np.array(
            pq.read_table(store.local(patches_key(cohort, slide)))["fractions"].to_pylist()
        )
        assigned = pq.read_table(store.local(cluster_key(name, f"assignments/{slide}.parquet")))
        truth.append(fractions.argmax(1))
        purity.append(fractions.max(1))
        found.append(np.asarray(assigned["cluster"]))
    labels, clusters = np.concatenate(truth), np.concatenate(found)
    pure = np.concatenate(purity) >= 0.9
    return {
        "n": len(labels),
        "all": round(adjusted_rand_score(labels, clusters), 3),
        "n_pure": int(pure.sum()),
        "pure": round(adjusted_rand_score(labels[pure], clusters[pure]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("cohort")
    parser.add_argument("--encoders", nargs="+", default=["random", "embedded"])
    parser.add_argument("--k", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    prepare(2)
    store = open_store(arguments.store)
    record = store.get_model(cohort_key(arguments.cohort), CohortRecord)
    groups = {"train": record.of_split("train"), "held out": record.of_split("val", "test")}
    results = {}
    for encoder in arguments.encoders:
        found: dict[str, list[dict[str, float]]] = {group: [] for group in groups}
        for seed in range(arguments.seeds):
            name = f"ari-{encoder}-{arguments.k}-{seed}"
            run(store, EmbedRequest(cohort=arguments.cohort, encoder=encoder, seed=seed))
            run(
                store,
                ClusterRequest(
                    run=name, cohort=arguments.cohort, encoder=encoder, k=arguments.k, seed=seed,
                    smoothing=0, sample_per_slide=500,
                    regions=RegionRule(size=128, mpp=1.0, max_per_slide=1),
                ),
            )  # fmt: skip
            for group, slides in groups.items():
                found[group].append(agreement(store, arguments.cohort, name, slides))
        results[encoder] = {group: summary(rows) for group, rows in found.items()}
    print(json.dumps(results, indent=1))


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """Return mean and standard deviation of each index over seeds, and the patch counts."""
    spread = {
        name: [round(float(np.mean([row[name] for row in rows])), 3),
               round(float(np.std([row[name] for row in rows], ddof=1)), 3) if rows[1:] else None]
        for name in ("all", "pure")
    }  # fmt: skip
    return {"n": rows[0]["n"], "n_pure": rows[0]["n_pure"], "seeds": len(rows), **spread}


if __name__ == "__main__":
    main()
