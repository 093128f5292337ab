"""Scores of a blinded reader study: how well readers tell real from synthetic, and whether that is equal to chance.

Equal to chance means that the whole 95 % interval of the accuracy lies within a margin of 0.5 chosen beforehand, which
is two one-sided tests at 2.5 % each (Schuirmann, J. Pharmacokinet. Biopharm. 15:657, 1987). A test that merely finds no
significant difference would let the smallest study look best.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.quality.turing import FORMAT, REAL, SYNTHETIC

COLUMNS = ("study", "reader", "role", "years", "image", "answer", "confidence", "milliseconds")
READER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")  # as the page asks; starts no spreadsheet formula
RESAMPLES = 2000
ONE_SIDED = 0.9  # a reader who gives one answer this often shows a habit, not what the images look like
CHANCE = 0.5


@dataclass(frozen=True)
class Rate:
    """A share of answers, 0 to 1, with its 95 % interval and the number of answers behind it."""

    value: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class ReaderScore:
    """One reader, or all of them together.

    sensitivity: synthetic images called synthetic; specificity: real images called real; fooling: synthetic images
    called real. d_prime is 0 for a reader who cannot tell and does not depend on a liking for one answer. p_value: the
    exact two-sided binomial test of the accuracy against 0.5; None for several readers: their answers depend on shared
    images.
    """

    reader: str
    role: str
    years: str
    accuracy: Rate
    sensitivity: Rate
    specificity: Rate
    fooling: Rate
    d_prime: float
    p_value: float | None
    median_seconds: float
    verdict: str


@dataclass(frozen=True)
class Score:
    """A scored study. kappa: mean of Cohen's kappa over pairs of readers, None where it is undefined.

    registration: hash of the pre-registered cases, empty where the study drew its own; bundle: what made the images.
    """

    study: str
    images: int
    margin: float
    readers: tuple[ReaderScore, ...]
    pooled: ReaderScore
    kappa: float | None
    notes: tuple[str, ...]
    registration: str = ""
    bundle: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The score as a person reads it in a terminal."""
        found = [f"{self.study}: {self.images} images, {len(self.readers)} reader{'s' * (len(self.readers) != 1)}"]
        if self.registration:
            found.append(f"pre-registered cases {self.registration[:16]}, images of {self.bundle}")
        several = len(self.readers) > 1
        for score in (*self.readers, *([self.pooled] if several else [])):
            about = ", ".join(part for part in (score.role, f"{score.years} years" if score.years else "") if part)
            found.append(f"{score.reader}" + (f" ({about})" if about else ""))
            for title, rate in (
                ("accuracy", score.accuracy),
                ("synthetic called synthetic", score.sensitivity),
                ("real called real", score.specificity),
                ("synthetic called real", score.fooling),
            ):
                found.append(f"  {title:<28}{rate.value:.3f}  [{rate.low:.3f}, {rate.high:.3f}]  of {rate.answers}")
            tail = f"  d' {score.d_prime:.2f}"
            tail += "" if score.p_value is None else f", p against chance {score.p_value:.2g}"
            found += [tail + f", median {score.median_seconds:.1f} s per image", f"  {score.verdict}"]
        if several:
            found.append(
                "agreement between readers: " + ("undefined" if self.kappa is None else f"{self.kappa:.2f} kappa")
            )
        return found + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True)
class _Answers:
    reader: str
    role: str
    years: str
    called: dict[str, str]  # image -> answer
    seconds: tuple[float, ...]


def score_study(key: Path, answers: Sequence[Path], *, margin: float = 0.1, seed: int = 0) -> Score:
    """Score the answer files of one study against its key.

    margin: accuracies within 0.5 +- margin count as chance; fix it before the study. seed: of the bootstrap.
    Intervals are Wilson's (JASA 22:209, 1927) for one reader. For several, readers and images are resampled
    independently (Owen, Ann. Appl. Stat. 1:386, 2007: the pigeonhole bootstrap, which errs on the wide side), and the
    interval is never narrower than Wilson's for as many independent answers.
    Unanswered images are left out, with a note. Raises InputError for a file that is no key or no answers, answers of
    another study, an unknown or repeated image, a repeated reader, or answers to one kind of image only.
    """
    if not 0 < margin < CHANCE:
        raise InputError(f"margin {margin}: give a number between 0 and 0.5, for example 0.1")
    if not answers:
        raise InputError("no answer files; give the CSV file of each reader")
    study, truth, registration, bundle = _read_key(key)
    sheets: list[_Answers] = []
    for path in answers:
        sheet = _read_answers(path, study, truth)
        if any(sheet.reader == other.reader for other in sheets):
            raise InputError(f"{path}: a second file of reader {sheet.reader}; give each reader once")
        sheets.append(sheet)
    readers = tuple(_score_reader(sheet, truth, margin) for sheet in sheets)
    pooled = readers[0] if len(sheets) == 1 else _score_pool(sheets, truth, margin, seed)
    return Score(
        study, len(truth), margin, readers, pooled, _kappa(sheets), tuple(_notes(sheets, truth)),
        registration, bundle,
    )  # fmt: skip


def wilson(successes: int, answers: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, JASA 22:209, 1927); answers >= 1."""
    z = NormalDist().inv_cdf(0.975)
    share = successes / answers
    centre = share + z * z / (2 * answers)
    spread = z * math.sqrt(share * (1 - share) / answers + z * z / (4 * answers * answers))
    scale = 1 + z * z / answers
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def binomial_p(successes: int, answers: int) -> float:
    """Exact two-sided p of a fair coin."""
    tail = sum(math.comb(answers, k) for k in range(max(successes, answers - successes), answers + 1))
    return min(1.0, float(2 * tail / 2**answers))


def d_prime(hits: int, synthetic: int, false_alarms: int, real: int) -> float:
    """Sensitivity index; half an answer is added to each cell so that it stays finite.

    The log-linear correction of Hautus, Behav. Res. Methods 27:46, 1995. A hit is a synthetic image called synthetic.
    """
    normal = NormalDist()
    return normal.inv_cdf((hits + 0.5) / (synthetic + 1)) - normal.inv_cdf((false_alarms + 0.5) / (real + 1))


def _verdict(accuracy: Rate, margin: float) -> str:
    low, high = CHANCE - margin, CHANCE + margin
    interval = f"[{accuracy.low:.3f}, {accuracy.high:.3f}]"
    differs = accuracy.low > CHANCE or accuracy.high < CHANCE
    if low <= accuracy.low and accuracy.high <= high:
        also = ", though it excludes 0.5 itself" if differs else ""
        return f"equal to chance within {margin:g}: {interval} lies inside [{low:g}, {high:g}]{also}"
    if differs:
        side = "recognised" if accuracy.low > CHANCE else "recognised with the answers swapped"
        return f"{side}: {interval} excludes 0.5"
    return f"undecided: {interval} holds 0.5 but reaches outside [{low:g}, {high:g}]; more answers are needed"


def _score_reader(sheet: _Answers, truth: dict[str, str], margin: float) -> ReaderScore:
    kinds = {kind: [image for image in sheet.called if truth[image] == kind] for kind in (REAL, SYNTHETIC)}
    right = {kind: sum(sheet.called[image] == kind for image in images) for kind, images in kinds.items()}
    real, synthetic = len(kinds[REAL]), len(kinds[SYNTHETIC])

    def rate(successes: int, answers: int) -> Rate:
        return Rate(successes / answers, *wilson(successes, answers), answers)

    accuracy = rate(right[REAL] + right[SYNTHETIC], real + synthetic)
    return ReaderScore(
        sheet.reader, sheet.role, sheet.years, accuracy,
        rate(right[SYNTHETIC], synthetic), rate(right[REAL], real), rate(synthetic - right[SYNTHETIC], synthetic),
        d_prime(right[SYNTHETIC], synthetic, real - right[REAL], real),
        binomial_p(right[REAL] + right[SYNTHETIC], real + synthetic), median(sheet.seconds), _verdict(accuracy, margin),
    )  # fmt: skip


def _score_pool(sheets: Sequence[_Answers], truth: dict[str, str], margin: float, seed: int) -> ReaderScore:
    images = list(truth)
    # (readers, images): 1 right, 0 wrong, and whether there is an answer at all
    right = np.array([[sheet.called.get(image) == truth[image] for image in images] for sheet in sheets], np.float64)
    given = np.array([[image in sheet.called for image in images] for sheet in sheets], np.float64)
    synthetic = np.array([truth[image] == SYNTHETIC for image in images])
    generator = np.random.default_rng(seed)
    reader_weights = generator.multinomial(len(sheets), np.full(len(sheets), 1 / len(sheets)), size=RESAMPLES)
    # The study fixed how many images are synthetic, so each kind is resampled on its own.
    image_weights = np.zeros((RESAMPLES, len(images)))
    for kind in (synthetic, ~synthetic):
        count = int(kind.sum())
        image_weights[:, kind] = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)

    def rate(successes: NDArray[np.float64], columns: NDArray[np.bool_]) -> Rate:
        weights = image_weights[:, columns]
        done = np.einsum("br,ri,bi->b", reader_weights, given[:, columns], weights, optimize=True)
        good = np.einsum("br,ri,bi->b", reader_weights, successes[:, columns], weights, optimize=True)
        low, high = np.quantile(good[done > 0] / done[done > 0], [0.025, 0.975])
        total, hits = int(given[:, columns].sum()), int(successes[:, columns].sum())
        floor = wilson(hits, total)  # readers who all agree would otherwise get an interval of no width
        return Rate(hits / total, min(float(low), floor[0]), max(float(high), floor[1]), total)

    accuracy = rate(right, np.ones_like(synthetic))
    sensitivity, specificity = rate(right, synthetic), rate(right, ~synthetic)
    hits = round(sensitivity.value * sensitivity.answers)
    false_alarms = specificity.answers - round(specificity.value * specificity.answers)
    return ReaderScore(
        "all readers", "", "", accuracy, sensitivity, specificity, rate(given - right, synthetic),
        d_prime(hits, sensitivity.answers, false_alarms, specificity.answers), None,
        median(seconds for sheet in sheets for seconds in sheet.seconds), _verdict(accuracy, margin),
    )  # fmt: skip


def _kappa(sheets: Sequence[_Answers]) -> float | None:
    """Mean over pairs of Cohen's kappa (Educ. Psychol. Meas. 20:37, 1960) on the images that both answered."""
    values = []
    for first, second in combinations(sheets, 2):
        both = first.called.keys() & second.called.keys()
        if not both:
            continue
        observed = fmean(first.called[image] == second.called[image] for image in both)
        shares = [fmean(sheet.called[image] == REAL for image in both) for sheet in (first, second)]
        expected = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
        if expected < 1:
            values.append((observed - expected) / (1 - expected))
    return fmean(values) if values else None


def _notes(sheets: Sequence[_Answers], truth: dict[str, str]) -> list[str]:
    notes = []
    for sheet in sheets:
        if len(sheet.called) < len(truth):
            notes.append(f"{sheet.reader} answered {len(sheet.called)} of {len(truth)} images; the others are left out")
        share = fmean(answer == REAL for answer in sheet.called.values())
        if not 1 - ONE_SIDED < share < ONE_SIDED:
            most = REAL if share > CHANCE else SYNTHETIC
            notes.append(
                f"{sheet.reader} answered {most} {max(share, 1 - share):.0%} of the time: accuracy is then near 0.5 "
                "whatever the images look like"
            )
    if 1 < len(sheets) < 5:
        notes.append(f"{len(sheets)} readers are too few to speak for readers in general")
    if len(sheets) == 1:
        notes.append("one reader: the interval covers other images, not other readers")
    return notes


def _read_key(path: Path) -> tuple[str, dict[str, str], str, str]:
    """Study, truth of each image, hash of registered cases and the bundle of its images, empty where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this csg-edge reads {FORMAT}")
        truth = {str(name): str(about["truth"]) for name, about in values["images"].items()}
        if set(truth.values()) != {REAL, SYNTHETIC}:
            raise ValueError("it needs real and synthetic images")
        made = " ".join(str(values[name]) for name in ("bundle", "bundle_manifest_sha256", "engine") if name in values)
        return str(values["study"]), truth, str(values.get("registration", "")), made
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not the key of a reader study ({error}); give the key.json made with it") from None


def _read_answers(path: Path, study: str, truth: dict[str, str]) -> _Answers:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read ({error}); give the CSV file that the study's page saved") from None
    # A spreadsheet may have saved the file again, with the separator of its country.
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error}); give the file that the study's page saved") from None
    if not rows or tuple(cell.strip().lower() for cell in rows[0]) != COLUMNS:
        raise InputError(f"{path}: the first line must be {','.join(COLUMNS)}; give the file that the page saved")
    if len(rows) == 1:
        raise InputError(f"{path}: no answers; ask the reader to answer and save again")
    called: dict[str, str] = {}
    seconds: list[float] = []
    people = set()
    for number, row in enumerate(rows[1:], start=2):
        cells = dict(zip(COLUMNS, (cell.strip() for cell in row), strict=False))
        problem = _problem(cells, row, study, truth, called)
        if problem:
            raise InputError(f"{path}, line {number}: {problem}")
        called[cells["image"]] = cells["answer"].lower()
        seconds.append(int(cells["milliseconds"]) / 1000)
        people.add((cells["reader"], cells["role"], cells["years"]))
    if len({reader for reader, _, _ in people}) != 1:
        raise InputError(f"{path}: answers of {len(people)} readers; give one file per reader")
    if {truth[image] for image in called} != {REAL, SYNTHETIC}:
        raise InputError(f"{path}: answers to one kind of image only; ask the reader to go on, then save again")
    reader, role, years = min(people)
    return _Answers(reader, role, years, called, tuple(seconds))


def _problem(
    cells: dict[str, str], row: Sequence[str], study: str, truth: dict[str, str], called: dict[str, str]
) -> str:
    """What is wrong with one line of answers, and the remedy; empty if nothing is."""
    if len(row) != len(COLUMNS):
        return f"{len(row)} cells instead of {len(COLUMNS)}; give the file as the page saved it"
    if cells["study"] != study:
        return f"an answer to {cells['study']!r}, but the key is of {study}; give the key made with that page"
    if not READER.fullmatch(cells["reader"]):
        return f"reader {cells['reader']!r}; use up to 40 letters, digits, dots or dashes"
    if len(cells["role"]) > 60 or not cells["role"].isprintable() or not re.fullmatch(r"\d{0,2}", cells["years"]):
        return f"role {cells['role'][:60]!r}, years {cells['years'][:9]!r}; give the file as the page saved it"
    if cells["image"] not in truth:
        return f"image {cells['image']!r} is not in this study; give the file as the page saved it"
    if cells["image"] in called:
        return f"image {cells['image']} is answered twice; remove one of the lines"
    if cells["answer"].lower() not in (REAL, SYNTHETIC):
        return f"answer {cells['answer']!r} is neither {REAL} nor {SYNTHETIC}; correct or remove the line"
    if cells["confidence"] not in ("", "1", "2", "3", "4", "5"):
        return f"confidence {cells['confidence']!r} is not 1 to 5; correct or empty it"
    if not re.fullmatch(r"\d{1,9}", cells["milliseconds"], re.ASCII):
        return f"milliseconds {cells['milliseconds']!r}; give a whole number"
    return ""
