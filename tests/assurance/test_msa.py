"""Measurement systems analysis: AIAG's worked example to its digits, variance components, and what is refused."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from backend.api.catalogue import sentence
from backend.assurance.msa import Study, agreement, cohen_kappa, fleiss_kappa, repeatability
from backend.assurance.msa_page import page
from backend.assurance.studies import SERVICE, Look, analysed, of_records, read_csv
from backend.base.errors import StudyNotUsable
from backend.base.keys import ModelKey
from backend.base.messages import Phrase
from backend.records.entries import ReviewDraft
from backend.records.ledger import Ledger
from backend.records.repeats import seen_parts
from tests.records.made import record

AIAG = Path(__file__).resolve().parent.parent / "data" / "aiag_attributes.csv"
KEY = ModelKey.of("Master1", "Pattern")


def codes(study: Study) -> list[str]:
    return [one.code for one in study.notices]


def refused(looks: list[Look]) -> str:
    with pytest.raises(StudyNotUsable) as caught:
        analysed("study.csv", looks)
    reason = caught.value.values["reason"]
    assert isinstance(reason, Phrase)
    assert sentence(caught.value, "es").endswith(".")
    return reason.code


def test_aiags_study_of_attributes_comes_out_to_the_published_digits() -> None:
    """AIAG, Measurement Systems Analysis, 4th edition, table III-C 1 and what follows it."""
    made = analysed(AIAG.name, read_csv(AIAG)).agreement
    assert made is not None
    assert (made.n_parts, made.n_trials) == (50, 3)
    assert {pair.names: (pair.counts, round(pair.kappa, 2)) for pair in made.pairs} == {
        ("A", "B"): (((44, 6), (3, 97)), 0.86),
        ("A", "C"): (((43, 7), (8, 92)), 0.78),
        ("B", "C"): (((42, 5), (9, 94)), 0.79),
    }
    told = {
        one.name: (
            round(one.kappa or 0, 2),
            *(rate and (rate.k, rate.n) for rate in (one.within, one.effectiveness, one.misses, one.false_alarms)),
        )
        for one in made.appraisers
    }
    assert told == {
        "A": (0.88, (42, 50), (42, 50), (3, 48), (5, 102)),
        "B": (0.92, (45, 50), (45, 50), (3, 48), (2, 102)),
        "C": (0.77, (40, 50), (40, 50), (6, 48), (9, 102)),
    }
    intervals = [[round(100 * end) for end in one.within.interval] for one in made.appraisers]
    assert intervals == [[71, 93], [78, 97], [66, 90]]
    assert made.all_right is not None
    assert (made.all_agree.value, made.all_right.value) == (0.78, 0.78)


def test_its_page_says_so_in_both_languages_and_has_fields_to_sign() -> None:
    study = analysed(AIAG.name, read_csv(AIAG))
    spanish, english = (page(study, lang, sentence, name="<AIAG>", when="now", version="1") for lang in ("es", "en"))
    for said in (
        "84,0 % (42/50)",
        "6,3 % (3/48)",
        "4,9 % (5/102)",
        "κ 0,86",
        "78,0 % (39/50)",
        "Firma",
        "&lt;AIAG&gt;",
    ):
        assert said in spanish
    for said in ("90.0 % (45/50)", "2.0 % (2/102)", "κ 0.79", "Signature", "A4"):
        assert said in english


def test_kappa_of_tables_with_known_values() -> None:
    assert cohen_kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    assert fleiss_kappa(np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])) == pytest.approx(1 / 3)
    assert cohen_kappa(np.array([[0, 0], [0, 9]])) == 1.0
    assert fleiss_kappa(np.ones((4, 3), np.int64)) == 1.0


def test_components_of_variance_are_found_again() -> None:
    rng = np.random.default_rng(0)
    scores = [(part + rng.normal(0, 0.02, rng.integers(2, 6))).tolist() for part in rng.normal(0.5, 0.1, 400)]
    found = repeatability([*scores, [0.4]], threshold=0.7)
    assert found is not None
    assert found.n_parts == 400
    assert found.within == pytest.approx(0.02, rel=0.05)
    assert found.between == pytest.approx(0.1, rel=0.1)
    assert found.low < 0.02 < found.high
    assert found.judgement == "marginal"
    assert 6 <= found.ndc <= 8
    assert found.doubtful == pytest.approx(1.96 * 0.02, rel=0.05)


def test_the_interval_of_the_standard_deviation_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        found = repeatability((rng.normal(0.5, 0.02, (5, 3)) + rng.normal(0, 0.1, (5, 1))).tolist())
        assert found is not None
        held += found.low <= 0.02 <= found.high
    assert stats.binomtest(held, 300, 0.95).pvalue > 0.01


def looks(**changed: object) -> list[Look]:
    """Two people, two trials, four parts."""
    made = []
    for part in range(4):
        for who in ("Ana", "Luis"):
            look = replace(Look(f"P{part}", who, part < 2, part < 2), **changed)  # type: ignore[arg-type]
            made += [look, look]
    return made


def test_a_study_without_faults_says_only_that_it_is_small() -> None:
    study = analysed("study.csv", looks())
    assert codes(study) == ["study_few_parts"]
    assert study.agreement is not None
    assert {one.judgement for one in study.agreement.appraisers} == {"acceptable"}


def test_each_fault_of_a_study_is_a_sentence() -> None:
    assert refused(looks()[:-1]) == "study_unequal"
    assert refused([look for look in looks() if (look.part, look.appraiser) != ("P3", "Ana")]) == "study_unequal"
    assert refused([*looks()[:-4], *looks(reference=None)[-4:]]) == "study_reference_missing"
    assert refused([*looks()[:-1], replace(looks()[-1], reference=True)]) == "study_reference_differs"
    assert refused([look for look in looks(reference=None) if look.appraiser == "Ana"]) == "study_one_appraiser_alone"
    assert refused([]) == "study_no_repeats"
    alone = analysed("study.csv", [look for look in looks() if look.appraiser == "Ana"])
    assert "study_one_appraiser" in codes(alone)
    assert "study_no_reference" in codes(analysed("study.csv", looks(reference=None)))
    assert "study_one_kind" in codes(analysed("study.csv", looks(reference=True)))


def scored(part: str, score: float, picture: str = "") -> Look:
    return Look(part, score=score, picture=picture)


def test_one_picture_scored_twice_is_no_repeat() -> None:
    twice = [scored("P1", 0.5, "a"), scored("P1", 0.5, "a"), scored("P2", 0.6, "b"), scored("P2", 0.6, "b")]
    assert refused(twice) == "study_no_repeats"
    fresh = [scored("P1", 0.5, "a"), scored("P1", 0.52, "c"), scored("P2", 0.6, "b"), scored("P2", 0.61, "d")]
    study = analysed("study.csv", [*fresh, twice[1]])
    assert study.repeatability is not None
    assert study.repeatability.n_scores == 4
    assert codes(study) == ["study_same_picture"]
    same = [replace(look, picture="") for look in twice]
    assert refused(same) == "study_no_variance"


def test_a_csv_of_a_spanish_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    path = tmp_path / "estudio.csv"
    path.write_bytes(
        "Pieza;Evaluador;Veredicto;Referencia;Puntuacion;Imagen\r\nP1;José;buena;ok;0,25;a.png\r\n;;;;;\r\n".encode(
            "cp1252"
        )
    )
    digest = hashlib.sha256(b"picture").hexdigest()
    assert read_csv(path) == [Look("P1", "José", True, True, 0.25, digest)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "study_columns"),
        ("piece,mark\n1,2\n", "study_columns"),
        ("part,rating\n,ok\n", "study_no_part"),
        ("part,rating\nP1,maybe\n", "study_rating"),
        ("part,score\nP1,nan\n", "study_score"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "study.csv"
    path.write_text(text)
    with pytest.raises(StudyNotUsable) as caught:
        read_csv(path)
    assert caught.value.values["reason"].code == reason
    assert "?" not in sentence(caught.value, "en")


def test_the_record_is_a_study_of_the_parts_that_were_seen_several_times(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'records.db'}")
    names = {}
    for part, score in (("P1", 0.3), ("P2", 0.6), ("P3", 0.32)):
        for again in range(3):
            one = record(score=score + again / 100, part_id=part, image=f"{part}{again}".encode(), batch_id="study")
            names[part] = ledger.record(one).inspection_id
    ledger.record(record(part_id="P1", image=b"P10", batch_id="study"))
    ledger.record(record(part_id="P9", image=b"alone", batch_id="other"))
    for part, verdict in (("P1", "good"), ("P2", "bad"), ("P3", "good")):
        ledger.review(ReviewDraft(inspection_id=str(names[part]), verdict=verdict))  # type: ignore[arg-type]
    with ledger.reading() as connection:
        found, threshold = of_records(seen_parts(connection, KEY, "study"))
    study = analysed("records", found, threshold)
    ledger.close()
    assert study.repeatability is not None and study.agreement is not None
    assert (study.repeatability.n_parts, study.repeatability.n_scores) == (3, 9)
    assert study.repeatability.threshold == 0.5
    assert [one.name for one in study.agreement.appraisers] == [SERVICE]
    assert study.agreement.appraisers[0].effectiveness is not None
    assert study.agreement.appraisers[0].effectiveness.k == 3
    assert codes(study) == ["study_same_picture", "study_one_appraiser", "study_few_parts"]


def test_ratings_of_different_shapes_are_no_study() -> None:
    with pytest.raises(ValueError, match="ratings"):
        agreement({"A": np.ones((3, 2), np.int64), "B": np.ones((3, 3), np.int64)}, None)
