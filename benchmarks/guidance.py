"""Which guidance and how many steps?  python benchmarks/guidance.py STORE MODEL

Images of the val split's maps and crops, held against the val split (`services.evaluate`),
for each setting; nothing is chosen on the test split. Prints a table of the Fréchet
distance of each encoder.
"""

from __future__ import annotations

import argparse

from services.gateway.submit import Target, run_or_fail
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.synthesize import CropSource, DatasetRequest, MapSource

SETTINGS = (
    {"steps": 20, "guidance_map": 1.0, "guidance_crops": 1.0},
    {"steps": 20, "guidance_map": 1.25, "guidance_crops": 1.25},
    {"steps": 20, "guidance_map": 1.5, "guidance_crops": 1.5},
    {"steps": 20, "guidance_map": 2.0, "guidance_crops": 2.0},
    {"steps": 20, "guidance_map": 1.5, "guidance_crops": 1.0},
    {"steps": 20, "guidance_map": 1.0, "guidance_crops": 1.5},
    {"steps": 10, "guidance_map": 1.25, "guidance_crops": 1.25},
    {"steps": 40, "guidance_map": 1.25, "guidance_crops": 1.25},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--encoders", nargs="+", default=["efficientnet-lite0"])
    given = parser.parse_args()
    target = Target.of(given.store, "")
    model, _, version = given.model.partition("/")
    lines = []
    for number, setting in enumerate(SETTINGS):
        name = f"guidance-{number}"
        run_or_fail(
            target,
            DatasetRequest.model_validate(
                {
                    "dataset": name, "model": model, "version": version or "1",
                    "images": given.images, "maps": MapSource(splits=("val",), augment=False),
                    "crops": CropSource(splits=("val",), slide="same"), **setting,
                }
            ),
        )  # fmt: skip
        run_or_fail(
            target,
            EvaluateRequest(
                report=name, dataset=name, real_test=("val",), encoders=tuple(given.encoders),
                segmenter_steps=1, segmenter_batch=2,
            ),
        )  # fmt: skip
        report = target.store.get_json(f"reports/{name}/report.json")
        looks = [
            f"{part['rows']['dataset']['frechet']:.2f} "
            f"({part['rows']['dataset']['over_floor']:.2f} of floor)"
            for part in report["fidelity"]
        ]
        lines.append(" | ".join([*(f"{value}" for value in setting.values()), *looks]))
    print(" | ".join([*SETTINGS[0], *given.encoders]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
