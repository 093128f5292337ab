"""The reader study: blinded by construction, fair where the data allow it, scored to the numbers of the literature."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality.turing import Study, choose_images, make_study
from csg_edge.quality.turing_score import COLUMNS, Score, binomial_p, d_prime, score_study, wilson

SIDE = 32


def samples(count: int, *, seed: int, per_group: int = 2, classes: int = 2, smooth: bool = False) -> LabelledSet:
    """Images of noise or of one grey level, whose masks hold background and one other class, by turns."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    if smooth:
        images[:] = images[:, :1, :1]
    masks = np.zeros_like(images)
    for index in range(count):
        masks[index, : 8 + index % 5, : 10 + seed % 7] = 1 + index % classes
        masks[index, -1, -1 - index % SIDE :] = 1  # too few pixels to count as content, enough to differ
    names = tuple(f"image{index}" for index in range(count))
    return LabelledSet(images, masks, names, tuple(f"group{index // per_group}" for index in range(count)))


def generated_from(real: LabelledSet, *, seed: int = 9) -> LabelledSet:
    """Synthetic images of the masks of real ones, each with the next real image as its context."""
    images = np.random.default_rng(seed).integers(0, 256, real.images.shape, dtype=np.uint8)
    return LabelledSet(images, real.masks, real.names, real.groups, np.roll(real.images, -1, axis=0))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    real = samples(30, seed=1)
    return make_study(real, generated_from(real), tmp_path / "study", count=20, seed=3)


def truth_of(study: Study) -> dict[str, str]:
    values = json.loads(study.key.read_text())
    return {name: about["truth"] for name, about in values["images"].items()}


def page_images(study: Study) -> dict[str, bytes]:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', study.page.read_text(), re.DOTALL)
    assert data
    values = json.loads(data[1])
    assert values["study"] == study.id
    return {
        item["id"]: base64.b64decode(item["src"].removeprefix("data:image/png;base64,")) for item in values["images"]
    }


def write_answers(path: Path, study: str, reader: str, called: dict[str, str], *, extra: str = "") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            [study, reader, "sonographer", "7", image, answer, "", "1500"] for image, answer in called.items()
        )
        file.write(extra)
    return path


def test_the_page_holds_every_image_and_asks_nothing_of_the_network(study: Study) -> None:
    images = page_images(study)
    assert len(images) == study.images == 20
    assert images.keys() == truth_of(study).keys()
    for data in images.values():
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape == (SIDE, SIDE)
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", study.page.read_text())
    assert not re.search(r"https?:|//[a-z]|<link|\bsrc=|@import|url\(", text)
    assert "default-src 'none'" in text


def test_the_script_and_style_are_the_ones_the_policy_allows(study: Study) -> None:
    import hashlib

    text = study.page.read_text()
    for tag in ("script", "style"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert inline
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


def test_the_page_knows_nothing_of_the_truth(study: Study) -> None:
    key = json.loads(study.key.read_text())
    text = study.page.read_text()
    for about in key["images"].values():
        assert about["source"] not in text
        assert about["group"] not in text
    data = text[text.index('id="data">') : text.index("</script>", text.index('id="data">'))]
    assert not re.search(r'"(truth|real|synthetic|answer|source)', data)


def test_no_length_or_header_of_a_file_tells_the_kinds_apart(tmp_path: Path) -> None:
    # Flat images against noise: any compression at all would show.
    made = make_study(samples(10, seed=1), samples(10, seed=2, smooth=True), tmp_path, count=20, seed=0)
    images = page_images(made)
    assert len({len(data) for data in images.values()}) == 1
    assert len({data[:41] for data in images.values()}) == 1  # signature, header, start of the data chunk
    kinds = [re.findall(rb"IHDR|IDAT|IEND|tEXt|tIME|pHYs|gAMA", data) for data in images.values()]
    assert all(kind == [b"IHDR", b"IDAT", b"IEND"] for kind in kinds)


def test_the_order_tells_nothing_and_depends_on_the_images(tmp_path: Path) -> None:
    # The mean position of synthetic images over many studies is the middle; a wrong order would put it elsewhere.
    positions, orders = [], set()
    for seed in range(30):
        real = samples(10, seed=seed + 50)
        truth = list(
            truth_of(make_study(real, samples(10, seed=seed), tmp_path / str(seed), count=20, seed=0)).values()
        )
        orders.add(tuple(truth))
        positions += [index for index, kind in enumerate(truth) if kind == "synthetic"]
    assert len(orders) > 25  # one seed, other images: another order
    assert np.mean(positions) == pytest.approx(9.5, abs=1.0)  # 3.1 standard errors of a uniform draw


def test_the_same_samples_and_seed_give_the_same_study(study: Study, tmp_path: Path) -> None:
    real = samples(30, seed=1)
    again = make_study(real, generated_from(real), tmp_path / "again", count=20, seed=3)
    assert again.page.read_bytes() == study.page.read_bytes()
    assert again.key.read_bytes() == study.key.read_bytes()
    other = make_study(real, generated_from(real), tmp_path / "other", count=20, seed=4)
    assert other.id != study.id


def test_pairs_hold_the_same_classes_over_different_groups() -> None:
    real = samples(40, seed=1)
    choice = choose_images(real, generated_from(real), 8, np.random.default_rng(0))
    assert (choice.other_classes, choice.shared_group, choice.own_source, choice.same_mask) == (0, 0, 0, 0)
    assert len({real.groups[index] for index in choice.real}) == 8
    assert len({real.groups[index] for index in choice.synthetic}) == 8
    for first, second in zip(choice.real, choice.synthetic, strict=True):
        assert first % 2 == second % 2  # the class of their masks


def test_no_image_is_shown_beside_its_own_source_or_a_twin() -> None:
    # One group alone: sharing it cannot be avoided, but masks and contexts of shown real images can be.
    real = samples(24, seed=1, per_group=24, classes=1)
    twins = LabelledSet.join([generated_from(real, seed=seed) for seed in (1, 2, 3)])
    choice = choose_images(real, twins, 8, np.random.default_rng(0))
    assert (choice.own_source, choice.same_mask, choice.shared_group) == (0, 0, 8)
    shown = set(choice.real)
    for index in choice.synthetic:
        assert index % 24 not in shown
        assert (index + 1) % 24 not in shown


def test_what_could_not_be_made_fair_is_said(tmp_path: Path) -> None:
    real = samples(4, seed=1, per_group=4)
    made = make_study(real, generated_from(real), tmp_path, count=9, seed=0)
    assert made.images == 8
    told = " ".join(made.notes)
    assert "9 is odd" in told and "4 of 4 synthetic images share a group" in told and "they came from" in told
    assert "share a group" in (tmp_path / "README.txt").read_text()


@pytest.mark.parametrize(
    ("count", "change", "remedy"),
    [(1, {}, "ask for 2 or more"), (100, {}, "ask for 8"), (4, {"side": 16}, "read both at one size")],
)
def test_a_study_that_cannot_be_made_is_refused(
    tmp_path: Path, count: int, change: dict[str, int], remedy: str
) -> None:
    real = samples(4, seed=1)
    synthetic = samples(4, seed=2)
    if change:
        side = change["side"]
        synthetic = LabelledSet(
            synthetic.images[:, :side, :side], synthetic.masks[:, :side, :side], synthetic.names, synthetic.groups
        )
    with pytest.raises(InputError, match=remedy):
        make_study(real, synthetic, tmp_path / "out", count=count, seed=0)
    assert not (tmp_path / "out").exists()


def test_the_key_of_a_running_study_is_not_overwritten(study: Study) -> None:
    before = study.key.read_bytes()
    with pytest.raises(InputError, match="choose another folder"):
        make_study(samples(30, seed=8), samples(30, seed=9), study.key.parent, count=20, seed=0)
    assert study.key.read_bytes() == before


def test_statistics_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, answers in ((0, 5), (3, 10), (50, 100), (61, 100), (100, 100)):
        expected = stats.binomtest(successes, answers, 0.5)
        assert binomial_p(successes, answers) == pytest.approx(expected.pvalue, rel=1e-9)
        interval = expected.proportion_ci(method="wilson")
        assert wilson(successes, answers) == pytest.approx((interval.low, interval.high), abs=1e-9)
    # (8 + 0.5) / 11 and (3 + 0.5) / 11
    assert d_prime(8, 10, 3, 10) == pytest.approx(stats.norm.ppf(8.5 / 11) - stats.norm.ppf(3.5 / 11))
    assert d_prime(5, 10, 5, 10) == 0


def test_one_reader_is_scored_as_by_hand(study: Study, tmp_path: Path) -> None:
    # 10 synthetic: 7 called synthetic; 10 real: 6 called real.
    truth = truth_of(study)
    kinds = {kind: [name for name, value in truth.items() if value == kind] for kind in ("real", "synthetic")}
    called = {name: "synthetic" if index < 7 else "real" for index, name in enumerate(kinds["synthetic"])}
    called |= {name: "real" if index < 6 else "synthetic" for index, name in enumerate(kinds["real"])}
    score = score_study(study.key, [write_answers(tmp_path / "a.csv", study.id, "anna", called)])
    (reader,) = score.readers
    assert (reader.accuracy.value, reader.accuracy.answers) == (0.65, 20)
    assert (reader.accuracy.low, reader.accuracy.high) == pytest.approx((0.4329, 0.8188), abs=1e-4)
    assert (reader.sensitivity.value, reader.specificity.value, reader.fooling.value) == (0.7, 0.6, 0.3)
    assert reader.p_value == pytest.approx(0.2632, abs=1e-4)
    assert reader.median_seconds == 1.5
    assert reader.verdict.startswith("undecided")  # not significant, and yet no proof of equality
    assert score.pooled == reader
    assert score.kappa is None
    json.dumps(score.to_json(), allow_nan=False)
    assert any("accuracy" in line and "0.650  [0.433, 0.819]  of 20" in line for line in score.lines())


def test_perfect_readers_are_told_apart_without_an_interval_of_no_width(study: Study, tmp_path: Path) -> None:
    truth = truth_of(study)
    files = [write_answers(tmp_path / f"{name}.csv", study.id, name, truth) for name in ("anna", "ben", "cleo")]
    score = score_study(study.key, files)
    assert score.pooled.accuracy.value == 1.0
    assert score.pooled.accuracy.low == pytest.approx(wilson(60, 60)[0])
    assert score.pooled.verdict.startswith("recognised")
    assert score.pooled.p_value is None
    assert score.kappa == pytest.approx(1.0)


def simulate(path: Path, seed: int, *, readers: int, images: int) -> Score:
    generator = np.random.default_rng(seed)
    truth = {f"b{index}": "real" if index % 2 else "synthetic" for index in range(images)}
    key = path / "key.json"
    key.write_text(
        json.dumps({"format": 1, "study": "s", "images": {name: {"truth": kind} for name, kind in truth.items()}})
    )
    files = []
    for reader in range(readers):
        called = {name: str(generator.choice(["real", "synthetic"])) for name in truth}
        files.append(write_answers(path / f"{reader}.csv", "s", f"reader{reader}", called))
    return score_study(key, files, margin=0.15)


@pytest.mark.parametrize(("readers", "at_least", "at_most"), [(1, 0.885, 1.0), (4, 0.92, 1.0)])
def test_intervals_of_guessing_readers_cover_chance(
    tmp_path: Path, readers: int, at_least: float, at_most: float
) -> None:
    scores = [simulate(tmp_path, seed, readers=readers, images=100) for seed in range(100)]
    covered = np.mean([score.pooled.accuracy.low <= 0.5 <= score.pooled.accuracy.high for score in scores])
    assert at_least <= covered <= at_most  # 95 % +- 3 standard errors; the pooled one errs on the wide side
    equal = np.mean([score.pooled.verdict.startswith("equal to chance within 0.15") for score in scores])
    assert equal > 0.6
    if readers > 1:
        assert np.mean([score.kappa for score in scores]) == pytest.approx(0, abs=0.02)


def test_a_reader_who_always_says_real_is_noted(study: Study, tmp_path: Path) -> None:
    called = dict.fromkeys(truth_of(study), "real")
    score = score_study(study.key, [write_answers(tmp_path / "a.csv", study.id, "anna", called)])
    assert score.pooled.accuracy.value == 0.5
    assert score.pooled.d_prime == 0
    assert "answered real 100% of the time" in " ".join(score.notes)


def test_incomplete_answers_are_scored_and_noted(study: Study, tmp_path: Path) -> None:
    truth = truth_of(study)
    half = {name: truth[name] for name in list(truth)[:12]}
    files = [
        write_answers(tmp_path / "a.csv", study.id, "anna", half),
        write_answers(tmp_path / "b.csv", study.id, "ben", truth),
    ]
    score = score_study(study.key, files)
    assert score.readers[0].accuracy.answers == 12
    assert score.pooled.accuracy.answers == 32
    assert "anna answered 12 of 20 images" in " ".join(score.notes)


def test_answers_saved_again_by_a_spreadsheet_are_read(study: Study, tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.csv", study.id, "anna", truth_of(study))
    path.write_text("\ufeff" + path.read_text().replace(",", ";"), encoding="utf-8", newline="\r\n")
    assert score_study(study.key, [path]).pooled.accuracy.value == 1.0


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("other,anna,,1,{image},real,,5", "give the key made with that page"),
        ("{study},anna,,1,nowhere,real,,5", "not in this study"),
        ("{study},anna,,1,,real,,5", "not in this study"),
        ("{study},anna,,1,{image},real,,5", "answered twice"),
        ("{study},anna,,1,{fresh},maybe,,5", "neither real nor synthetic"),
        ("{study},anna,,1,{fresh},real,9,5", "not 1 to 5"),
        ("{study},anna,,1,{fresh},real,,soon", "whole number"),
        ("{study},anna,,1,{fresh},real", "6 cells instead of 8"),
        ("{study},ben,,1,{fresh},real,,5", "one file per reader"),
        ("{study},=HYPERLINK(),,1,{fresh},real,,5", "letters, digits"),
        ("{study},anna,\x1b[31m,1,{fresh},real,,5", "as the page saved it"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(study: Study, tmp_path: Path, line: str, remedy: str) -> None:
    truth = truth_of(study)
    fresh = list(truth)[-1]
    called = {name: kind for name, kind in truth.items() if name != fresh}
    extra = line.format(study=study.id, image=next(iter(truth)), fresh=fresh) + "\r\n"
    path = write_answers(tmp_path / "a.csv", study.id, "anna", called, extra=extra)
    with pytest.raises(InputError, match=remedy) as caught:
        score_study(study.key, [path])
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_what_is_no_answer_file_or_key_is_refused(study: Study, tmp_path: Path) -> None:
    good = write_answers(tmp_path / "a.csv", study.id, "anna", truth_of(study))
    with pytest.raises(InputError, match="the first line must be"):
        score_study(study.key, [study.page])
    with pytest.raises(InputError, match="cannot read"):
        score_study(study.key, [tmp_path / "missing.csv"])
    with pytest.raises(InputError, match="not the key"):
        score_study(good, [good])
    with pytest.raises(InputError, match="give each reader once"):
        score_study(study.key, [good, good])
    with pytest.raises(InputError, match="no answer files"):
        score_study(study.key, [])
    empty = write_answers(tmp_path / "empty.csv", study.id, "ben", {})
    with pytest.raises(InputError, match="no answers"):
        score_study(study.key, [empty])
    one_kind = {name: kind for name, kind in truth_of(study).items() if kind == "real"}
    with pytest.raises(InputError, match="one kind of image only"):
        score_study(study.key, [write_answers(tmp_path / "one.csv", study.id, "ben", one_kind)])
