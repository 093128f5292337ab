"""The report: everything that was found is on the page, nothing is fetched, names cannot break it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csg_edge.errors import InputError
from csg_edge.quality.metrics_table import METRICS
from csg_edge.quality.record import FORMAT, Figure, Gate, Record, Subject
from csg_edge.quality.report import (
    ContextPair,
    Fake,
    Neighbour,
    Pictures,
    SheetRow,
    summary_lines,
    verdict,
    write_report,
)

NASTY = '<script>alert("$x_1$")</script>&'
KEYS = [
    "c2st_structure",
    "coherence_shift",
    "direction_spread",
    "direction_gap",
    "ridge_length",
    "kid",
    "kid_joint",
    "mmd",
    "mmd_joint",
    "frechet",
    "frechet_joint",
    "dice",
    "contrast_correlation",
    "spectrum_gap",
    "speckle_gap",
    "histogram_gap",
    "c2st",
    "c2st_pixels",
    "context_hit_rate",
    "style_error",
    "diversity",
    "diversity_pixels",
    "memorisation_ratio",
    "memorisation_rate",
    "context_copy_ratio",
    "seed_likeness",
    "usefulness_real",
    "usefulness_both",
    "usefulness_synthetic",
    "usefulness_gain",
]


def a_record(*, name: str = "openvino:CPU:bf16, 1 step", gates: tuple[Gate, ...] | None = None) -> Record:
    figures = {key: Figure(0.01 * index, 0.009 * index, 0.012 * index, 17) for index, key in enumerate(KEYS, start=1)}
    subjects = (
        Subject(name, "engine", 500, {**figures, "speckle_snr": Figure(1.91, note="under an assumed dynamic range")}),
        Subject("real against real", "control", 167, {"kid": Figure(-0.00012, -0.0004, 0.0003, 17)}),
        Subject("teacher", "teacher", 500, figures),
    )
    if gates is None:
        gates = (
            Gate(name, "kid", 0.0123, "<= 0.0135 (1.1 x teacher)", True),
            Gate(name, "spectrum_gap", 0.31, "<= 0.2", False, "blurred"),
            Gate(name, "diversity", None, "", None, "no teacher to compare with"),
        )
    settings = {"seed": 0, "data": {"dltrack": {"groups": 71}}, "steps": [1, 2]}
    environment = {"evaluators": {"segmenter": "9f" * 32}}
    return Record(FORMAT, "msk-256", settings, environment, subjects, gates, ("Few groups.",), {"measure": 90.0})


def some_pictures(*, source: str = "openvino:CPU:bf16, 1 step") -> Pictures:
    generator = np.random.default_rng(0)

    def image() -> np.ndarray:
        return generator.integers(0, 256, (32, 32), dtype=np.uint8)

    mask, context, real = np.tril(np.full((32, 32), 3, np.uint8)), image(), image()
    frequencies = np.linspace(0.01, 0.5, 15)
    return Pictures(
        classes=("background", "a", "b", "muscle"),
        sheets={"teacher": [SheetRow(mask, context, image(), real)], source: [SheetRow(mask, context, image(), real)]},
        spectra={name: (frequencies, -9 * frequencies) for name in ("real", "teacher", source)},
        histograms={"muscle": {name: generator.random(256) for name in ("real", source)}},
        speckle={"SNR": {"real": generator.random(20), source: np.append(generator.random(20), np.nan)}},
        neighbours=[Neighbour(source, image(), image(), 0.2, 0.55)],
        fakes=[Fake(source, image(), 0.993)],
        contexts=[ContextPair(source, image(), image(), 0.93)],
    )


def page_of(record: Record, pictures: Pictures, folder: Path) -> str:
    return write_report(record, pictures, folder).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_page_says_everything_the_record_holds(tmp_path: Path) -> None:
    record = a_record()
    text = text_of(page_of(record, some_pictures(), tmp_path))
    assert text.index("Failed: 1 of 3 gates failed, 1 of 3 could not be judged") < text.index("Result")
    for part in ("pass openvino:CPU:bf16, 1 step KID kid 0.0123 ≤ 0.0135 (1.1 x teacher)",
                 "FAIL openvino:CPU:bf16, 1 step Spectrum gap spectrum_gap 0.310 ≤ 0.2 blurred",
                 "not judged openvino:CPU:bf16, 1 step Diversity diversity - no teacher"):  # fmt: skip
        assert part.replace(" - ", " \N{EN DASH} ") in text
    for key in KEYS:
        assert METRICS[key].title in text
        assert METRICS[key].explanation in text.replace("&#39;", "'")
    assert "speckle snr" in text and "1.910 no interval" in text and "assumed dynamic range" in text
    assert "\N{MINUS SIGN}0.000120 \N{MINUS SIGN}0.000400 to 0.000300 17 groups" in text
    for part in ("Few groups.", "data.dltrack.groups 71", "steps 1, 2", "9f" * 32, "measure 90.0", "1.5 minutes"):
        assert part in text


def test_columns_stand_as_control_teacher_engine(tmp_path: Path) -> None:
    page = page_of(a_record(), Pictures(), tmp_path)
    head = page[page.index('<table class="figures">') :]
    assert head.index("real against real") < head.index(">teacher<") < head.index("openvino:CPU:bf16")


def test_pictures_stand_side_by_side_with_captions(tmp_path: Path) -> None:
    pictures = some_pictures()
    page = page_of(a_record(), pictures, tmp_path)
    # two lines of context or mask, real, teacher, engine; a fake; two pairs
    assert page.count('<img src="data:image/png;base64,') == 8 + 1 + 2 + 2
    assert page.count('<div class="scroll case"') == 1  # one mask and context: one case, whatever the subjects
    assert page.count("<svg") == 3 + 3  # plots, and one legend key each for three sources
    text = text_of(page)
    for part in ("real of this mask", "openvino:CPU:bf16, 1 step, outlined", "99.3 % synthetic",
                 "93 % of other contexts", "distance 0.200; held-out real images: 0.550", "muscle"):  # fmt: skip
        assert part in text


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(a_record(), some_pictures(), tmp_path)
    assert "default-src 'none'" in page
    stripped = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|<script|<link|@import|url\((?!#)", stripped)


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    record = replace(a_record(name=NASTY), bundle=NASTY, limits=(NASTY,), settings={NASTY: NASTY})
    pictures = some_pictures(source=NASTY)
    pictures = replace(pictures, classes=(NASTY,) * 4, histograms={NASTY: pictures.histograms["muscle"]})
    page = page_of(record, pictures, tmp_path)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


@pytest.mark.parametrize(
    "empty", ["sheets", "spectra", "histograms", "speckle", "neighbours", "fakes", "contexts", "classes"]
)
def test_any_part_may_be_missing(tmp_path: Path, empty: str) -> None:
    pictures = some_pictures()
    without = replace(pictures, **{empty: type(getattr(pictures, empty))()})
    assert "Gates" in page_of(a_record(), without, tmp_path)


def test_a_bare_record_makes_a_page(tmp_path: Path) -> None:
    bare = Record(FORMAT, "b", {}, {}, (), (), (), {})
    text = text_of(page_of(bare, Pictures(), tmp_path))
    assert "Not judged: no gates were set" in text
    assert "Nothing was measured" in text
    assert "nan" not in text.lower()
    assert summary_lines(bare) == []


def test_the_verdict_is_a_pass_only_if_every_gate_was_judged_and_passed() -> None:
    good, bad, unknown = (
        Gate("e", "kid", 0.1, "", True),
        Gate("e", "kid", 0.1, "", False),
        Gate("e", "kid", None, "", None),
    )
    record = a_record()
    assert verdict(replace(record, gates=(good, good))) == "Passed: all 2 gates"
    assert verdict(replace(record, gates=(good,))) == "Passed: the one gate"
    assert verdict(replace(record, gates=(good, unknown))) == "Not judged: 1 of 2 could not be judged"
    assert verdict(replace(record, gates=(bad, good))) == "Failed: 1 of 2 gates failed"
    assert verdict(replace(record, gates=())).startswith("Not judged")


def test_one_aligned_line_per_gate_for_the_terminal() -> None:
    lines = summary_lines(a_record())
    assert lines == [
        "pass        openvino:CPU:bf16, 1 step  kid           0.0123  <= 0.0135 (1.1 x teacher)",
        "FAIL        openvino:CPU:bf16, 1 step  spectrum_gap  0.310   <= 0.2 (blurred)",
        "not judged  openvino:CPU:bf16, 1 step  diversity     -        (no teacher to compare with)",
    ]


def test_the_record_lies_beside_the_page_and_no_partial_file_stays(tmp_path: Path) -> None:
    record = a_record()
    write_report(record, some_pictures(), tmp_path / "new" / "report")
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == ["report.html", "report.json"]
    assert Record.read(tmp_path / "new" / "report" / "report.json").gates == record.gates


def test_a_record_of_the_former_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    a_record().write(path)
    old = json.loads(path.read_text()) | {"format": 1}
    path.write_text(json.dumps(old).replace('"c2st"', '"two_sample_features"'))
    with pytest.raises(InputError) as refused:
        Record.read(path)
    assert "of format 1, this csg-edge reads 3" in str(refused.value)
    assert str(refused.value).endswith("run csg-edge validate again")


def test_the_committed_record_is_of_this_format() -> None:
    record = Record.read(Path(__file__).parents[2] / "benchmarks" / "results" / "quality.json")
    measured = {name for subject in record.subjects for name in subject.figures}
    assert {"c2st", "c2st_structure", "c2st_structure/usgra_nerve_vessel", "memorisation_rate"} <= measured
    judged = {gate.name for gate in record.gates if gate.counts}
    assert {"c2st", "c2st_structure/usgra_nerve_vessel"} <= judged <= measured


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose a writable folder"):
        write_report(a_record(), Pictures(), tmp_path / "file" / "out")


def test_the_same_record_gives_the_same_page_of_a_sane_size(tmp_path: Path) -> None:
    first = page_of(a_record(), some_pictures(), tmp_path / "a")
    assert first == page_of(a_record(), some_pictures(), tmp_path / "b")
    assert len(first) < 400_000  # 13 pictures of 1 kB of noise, three plots


def test_every_agreed_metric_is_explained() -> None:
    assert METRICS.keys() == set(KEYS)
    assert all(metric.better and metric.explanation.endswith(".") for metric in METRICS.values())
