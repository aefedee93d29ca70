"""Certificates of a real model, and the page that they become."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from backend.api.catalogue import sentence
from backend.assurance.certificate import CertificateOptions, certify, certify_stored, notices_of
from backend.assurance.defects import GRADES, KINDS, ZONES
from backend.assurance.page import page
from backend.assurance.parts import Parts
from backend.assurance.words import PAGE, Language, words
from backend.base.errors import Cancelled, GoodPartsRejected
from backend.samples.collector import Collector
from backend.service.calibration import Terms
from backend.service.jobs import Job
from tests.assurance.conftest import KEY, fitted_collector
from tests.parts import good_files

QUICK = CertificateOptions(trials=3)


@pytest.fixture(scope="module")
def made(collector: Collector) -> dict[str, Any]:
    return certify_stored(collector, KEY, QUICK, Job())


def test_a_certificate_says_who_the_model_is(collector: Collector, made: dict[str, Any]) -> None:
    stored = collector.inspector.cache.model(KEY).stored
    model = made["model"]
    assert (model["generation"], model["role_id"], model["roi_id"]) == (stored.generation, "Master1", "Pattern")
    assert (model["extractor"], model["fingerprint"]) == ("texture", stored.fingerprint)
    assert [one["sha256"] for one in model["samples"]] == list(stored.known_images)
    assert model["scoring"]["method"] == "percentile" and re.fullmatch("[0-9a-f]{64}", model["samples_sha256"])


def test_it_holds_what_was_promised_found_and_disturbed(made: dict[str, Any]) -> None:
    assert made["calibration"]["false_reject"]["basis"] == "leave_one_out"
    assert made["calibration"]["misses"]["n_ng"] == 3 and "good_scores" not in made["calibration"]
    assert made["parts"]["n"] == len(made["parts"]["scores"]) == 12 and made["parts"]["basis"] == "held_out"
    curves = made["detection"]["curves"]
    assert len(curves) == len(KINDS) * len(ZONES) * len(GRADES)
    assert all(curve["n"] <= 3 and "a90_95_mm2" not in curve for curve in curves)
    assert {example["kind"] for example in made["detection"]["examples"]} <= set(KINDS)
    assert made["stability"][0]["what"] == "none" and made["stability"][0]["n"] == 12
    assert made["suspects"]["n_images"] == 22


def test_it_is_json_and_kept_with_the_model(collector: Collector, made: dict[str, Any]) -> None:
    again = json.loads(json.dumps(made, allow_nan=False))
    assert collector.inspector.store.load_certificate(KEY) == again


@pytest.mark.slow
def test_parts_that_are_rejected_as_they_are_get_no_defects(tmp_path: Path) -> None:
    collector = fitted_collector(tmp_path)
    scores = collector.inspector.cache.calibration(KEY)["good_scores"].values  # type: ignore[index]
    collector.inspector.calibrate(KEY, ok_scores=[0.001] * 20, mm_per_px=0.2)
    with pytest.raises(GoodPartsRejected):
        certify(collector.inspector, KEY, Parts.stored(collector, KEY, most=12, seed=0), options=QUICK)
    middle = sorted(scores)[len(scores) // 2]
    collector.inspector.calibrate(KEY, ok_scores=scores, mm_per_px=0.2, terms=Terms(threshold=middle))
    made = certify(collector.inspector, KEY, Parts.stored(collector, KEY, most=12, seed=0), options=QUICK)
    collector.inspector.close()
    assert made["parts"]["n_rejected"] > 0
    assert made["detection"]["n_parts"] == made["parts"]["n"] - made["parts"]["n_rejected"]
    assert made["stability"][0]["n_rejected"] == made["parts"]["n_rejected"]
    assert "suspects" not in made and words("not_whole", "en") in page(made, "en", sentence)


@pytest.mark.slow
def test_with_few_parts_outside_the_fit_all_are_tried_without_their_rows(tmp_path: Path) -> None:
    collector = fitted_collector(tmp_path, held_out=3)
    made = certify(collector.inspector, KEY, Parts.stored(collector, KEY, most=50, seed=0), options=QUICK)
    collector.inspector.close()
    assert made["parts"]["basis"] == "leave_one_out" and made["parts"]["n"] == 13
    assert words("not_leave_one_out", "es") in page(made, "es", sentence)


class Checked(HTMLParser):
    """Every tag that opens closes, and nothing is fetched."""

    VOID = frozenset({"meta", "img", "path", "rect", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [str(v) for name, v in attrs if name in {"src", "href"} and not str(v).startswith("data:")]
        assert tag not in {"script", "link", "iframe"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("language", ["es", "en"])
def test_the_page_is_whole_and_fetches_nothing(made: dict[str, Any], language: Language) -> None:
    html = page(made, language, sentence)
    checked = Checked()
    checked.feed(html)
    assert checked.open == [] and checked.fetched == []
    assert "url(" not in html and "@import" not in html and "size: A4" in html
    for name in ("title", "in_short", "identity", "rejects", "detects", "stability", "not_said", "not_real"):
        assert words(name, language) in checked.text
    assert made["model"]["generation"] in checked.text
    assert "{" not in checked.text.replace(html[html.index("<style>") : html.index("</style>")][7:], "")
    assert len(html) < 1_000_000


def test_names_and_notes_are_text_and_no_markup(made: dict[str, Any]) -> None:
    nasty = "<script>alert('x')</script>"
    changed = {
        **made,
        "calibration": {**made["calibration"], "note": nasty},
        "model": {**made["model"], "extractor": nasty},
    }
    html = page(changed, "en", sentence)
    assert nasty not in html and html.count("&lt;script&gt;") == 2


def test_numbers_are_written_as_the_language_does_and_what_is_assured_is_rounded_up(made: dict[str, Any]) -> None:
    promise = {**made["calibration"]["false_reject"], "upper_bound": 0.04131}
    changed = {**made, "calibration": {**made["calibration"], "false_reject": promise}}
    assert "4,2\u00a0%" in page(changed, "es", sentence) and "4.2\u00a0%" in page(changed, "en", sentence)


def test_every_word_has_the_same_holes_in_both_languages() -> None:
    for es, en in PAGE.values():
        assert sorted(re.findall(r"{(\w+)}", es)) == sorted(re.findall(r"{(\w+)}", en))


class At(Job):
    """Does something when so many things of a stage are done."""

    def __init__(self, stage: str, number: int, action: Callable[[Job], object]) -> None:
        super().__init__()
        self._at, self._action = (stage, number), action

    def report(self, stage: str, done: int, total: int) -> None:
        if (stage, done) == self._at:
            self._action(self)


def test_a_certificate_that_was_cancelled_or_whose_model_changed_is_not_kept(tmp_path: Path) -> None:
    collector = fitted_collector(tmp_path)
    store, few = collector.inspector.store, CertificateOptions(trials=3, most_parts=5)
    with pytest.raises(Cancelled):
        certify_stored(collector, KEY, few, At("detection", 2, Job.cancel))
    assert store.load_certificate(KEY) is None
    actions = (
        lambda _: collector.fit(KEY, good_files(4), mm_per_px=0.2),
        lambda _: collector.delete_model(KEY),
    )
    for action in actions:
        made = certify_stored(collector, KEY, few, At("stability", 5, action))
        assert [one.code for one in notices_of(made)][-1] == "certificate_not_kept"
        assert store.load_certificate(KEY) is None
    collector.inspector.close()
