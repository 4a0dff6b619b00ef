"""The HTTP API's edits, on a directory store."""

from __future__ import annotations

import base64
import io
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from services.gateway.api.limits import Limits
from services.image.stage import ImageStage
from shared.contracts.image import ImageRequest
from shared.errors import CancelledError
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import parse_mark
from shared.imaging.masks import ORIENTATION
from shared.jobs import Context, Shard
from shared.queue.sweeping import sweep
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

NOW = {"Prefer": "wait=0"}
HEIGHT, WIDTH, BORDER = 36, 40, 3


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("store")
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store))
    return Gateway(folder)


def text(array: np.ndarray) -> str:  # type: ignore[type-arg]
    return base64.b64encode(encode_png(array)).decode()


def crop(tissue: str, level: int = 90) -> dict[str, Any]:
    return {"tissue": tissue, "png": text(np.full((12, 12, 3), level, np.uint8))}


IMAGE = np.random.default_rng(0).integers(100, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LABELS = np.ones((HEIGHT, WIDTH), np.uint8)
LABELS[:, 20:] = 2
AREA = np.zeros((HEIGHT, WIDTH), np.uint8)
AREA[8:20, 14:30] = 255


def body(**fields: Any) -> dict[str, Any]:
    whole = {
        "action": "paint", "model": "toy", "image": text(IMAGE), "labels": text(LABELS),
        "area": text(AREA), "border": BORDER, "steps": 1,
    }  # fmt: skip
    return {name: value for name, value in (whole | fields).items() if value is not None}


def made(gateway: Gateway, **fields: Any) -> bytes:
    waiting = gateway.client.post("/v1/edits", json=body(**fields), headers=NOW)
    assert waiting.status_code == 202, waiting.text
    place = waiting.headers["Location"]
    status = gateway.work(place.rpartition("/")[2])
    assert status.state == "done", status.failed
    return gateway.client.get(place).content


def test_painting_changes_the_area_and_its_border_alone_and_says_so(gateway: Gateway) -> None:
    png = made(gateway)
    painted, area = decode_png(png), AREA > 0
    near = distance_transform_edt(~area) <= BORDER
    np.testing.assert_array_equal(painted[~near], IMAGE[~near])
    assert (painted[area] != IMAGE[area]).mean() > 0.9
    mark = parse_mark(Image.open(io.BytesIO(png)).info["XML:com.adobe.xmp"])
    assert mark is not None
    assert (mark.model, mark.source) == ("toy/1", "compositeWithTrainedAlgorithmicMedia")
    again = gateway.client.post("/v1/edits", json=body(), headers=NOW)
    assert (again.status_code, again.content) == (200, png)


def test_the_crops_and_the_strength_decide_how_an_image_is_drawn_again(gateway: Gateway) -> None:
    plain = {"area": None, "action": "restain"}
    dark, light = (
        decode_png(made(gateway, **plain, crops=[crop("stroma", level), crop("tumor", level)]))
        for level in (40, 220)
    )
    assert dark.mean() < light.mean()
    assert np.corrcoef(dark.ravel(), IMAGE.ravel())[0, 1] > 0.5, "the cells stay"
    weak, strong = (
        decode_png(made(gateway, area=None, action="vary", strength=strength))
        for strength in (0.0, 1.0)
    )
    assert weak.shape == IMAGE.shape
    assert np.corrcoef(weak.ravel(), IMAGE.ravel())[0, 1] < 0.2, "it is drawn again"
    assert (weak == strong).all(), "there is one step"
    assert (decode_png(made(gateway, area=None, action="vary", seed=1)) != weak).any()


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"model": "none"}, "#/model", "no model 'none': it holds toy/1"),
        ({"image": "AAAA"}, "#/image", "not a readable PNG"),
        (
            {"image": text(IMAGE[:16, :16])},
            "#",
            "the label map is 40×36 px, but the image is 16×16",
        ),
        (
            {"labels": text(LABELS[:30])},
            "#",
            "the label map is 40×30 px, but the image is 40×36 px",
        ),
        ({"labels": text(LABELS * 4)}, "#/labels", "8]; the labels of toy/1 are 0 to 2"),
        ({"labels": text(IMAGE)}, "#/labels", "it has colours"),
        ({"area": text(AREA[:, 1:])}, "#", "the area is 39×36 px, but the image is 40×36 px"),
        ({"area": text(AREA * 0)}, "#", "the area is empty"),
        ({"area": text(AREA * 0 + 1)}, "#", "shows no 'stroma' outside of the area"),
        ({"area": None}, "#", "paint needs an area"),
        ({"area": None, "action": "restain"}, "#", "restain needs crops"),
        ({"labels": text(LABELS // LABELS), "crops": [crop("tumor")]}, "#", "is of 'tumor', which"),
        ({"crops": [crop("tumor"), crop("tumor")]}, "#", "'tumor' has several crops"),
        ({"crops": [crop("bone")]}, "#/crops/0", "no tissue 'bone'"),
        ({"crops": [crop("tumor") | {"png": text(IMAGE[:36, :36])}]}, "#/crops/0", "8 to 32 px"),
        ({"border": 65}, "#/border", "64"),
    ],
)
def test_what_cannot_be_edited_is_refused_at_once(
    gateway: Gateway, change: dict[str, Any], pointer: str, words: str
) -> None:
    before = set(gateway.resources.root.list())
    answer = gateway.client.post("/v1/edits", json=body(**change), headers=NOW)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert set(gateway.resources.root.list()) == before


def picture(image: Image.Image, **options: Any) -> str:
    """Save a picture as PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_are_read_as_tiles_are(gateway: Gateway) -> None:
    opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    opaque[:10] = 0
    hidden = picture(Image.fromarray(np.concatenate([IMAGE, opaque], 2)))
    painted = decode_png(made(gateway, image=hidden, seed=3))
    assert (painted[:4] == 255).all(), "transparent pixels are white"
    np.testing.assert_array_equal(painted[30:], IMAGE[30:])

    turned = Image.Exif()
    turned[ORIENTATION] = 3
    dim = base64.b64encode(cv2.imencode(".png", IMAGE.astype(np.uint16))[1].tobytes()).decode()
    clear = Image.fromarray(LABELS)
    for change, pointer, words in (
        ({"image": picture(Image.fromarray(IMAGE), exif=turned)}, "#/image", "orientation 3"),
        ({"image": dim}, "#/image", "highest value is 199 of 65535"),
        ({"labels": picture(clear, exif=turned)}, "#/labels", "orientation 3"),
    ):
        answer = gateway.client.post("/v1/edits", json=body(**change), headers=NOW)
        assert answer.status_code == 422, answer.text
        assert words in answer.json()["detail"]
        assert answer.json()["errors"][0]["pointer"] == pointer


def test_an_edit_costs_its_pixels_and_bytes_and_can_be_cancelled(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []

    def spending(*given: Any) -> AbstractContextManager[None]:
        spent.append(given[3])
        return nullcontext()

    monkeypatch.setattr(Limits, "spending", spending)
    store, before = gateway.resources.root, set(gateway.resources.root.list("images/inputs/"))
    given = body(image=text(255 - IMAGE), labels=text(LABELS[:, ::-1]), area=text(AREA[::-1]))
    place = gateway.client.post("/v1/edits", json=given, headers=NOW).headers["Location"]
    stored = sum(store.size(key) for key in set(store.list("images/inputs/")) - before)
    kept_request = spent.pop()
    assert spent == [2, stored]  # 40×36 px, of 32×32 px an image
    assert 0 < kept_request < 2000
    gateway.client.post("/v1/edits", json=given, headers=NOW)
    assert len(spent) == 2, "the same request is open"
    kept = timedelta(days=1)
    later = datetime.now(UTC) + timedelta(days=2)
    ledger = gateway.resources.ledger("local")
    sweep(ledger, kept, later)
    assert len(list(store.list("images/inputs/"))) == 3

    def report(done: int, total: int, note: str) -> None:
        raise CancelledError("it was cancelled")

    request = ImageRequest.model_validate(ledger.request(place.rpartition("/")[2]))
    context = Context(store, threads=1, device="cpu", report=report)
    with pytest.raises(CancelledError):
        ImageStage().run(request, Shard(id="image"), context)


def test_edits_need_the_scope_generate_and_stay_with_their_tenant(gateway: Gateway) -> None:
    reading = gateway.holding("read")
    assert reading.post("/v1/edits", json=body()).status_code == 403
    place = gateway.client.post("/v1/edits", json=body(seed=9), headers=NOW).headers["Location"]
    other = gateway.holding("read", "generate", tenant="other")
    assert other.get(place).status_code == 404
    assert other.post("/v1/edits", json=body(), headers=NOW).status_code in (404, 422)
