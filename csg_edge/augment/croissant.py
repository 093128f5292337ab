"""Croissant metadata of an augmented set (MLCommons Croissant 1.0): which files there are and what the table says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from csg_edge.storage import write_json

FILE = "croissant.json"
SPECIFICATION = "http://mlcommons.org/croissant/1.0"
# Words of the specification, section "JSON-LD context".
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/", "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
KINDS = {".png": "image/png", ".tif": "image/tiff", ".dcm": "application/dicom", ".gz": "application/gzip"}


def write_croissant(out: Path, record: dict[str, Any], *, table: str, columns: tuple[str, ...]) -> None:
    """Write `croissant.json`. table: the CSV file that lists the images, with these columns."""
    folders = [path for path in sorted(out.iterdir()) if path.is_dir()]
    files = [_object(out / table, "text/csv"), _object(out / "provenance.jsonl", "application/jsonl")]
    sets = [_set(path) for path in folders]
    write_json(out / FILE, {
        "@context": CONTEXT, "@type": "sc:Dataset", "conformsTo": SPECIFICATION, "name": f"{record['set']}_augmented",
        "description": f"{record['made']} synthetic ultrasound images made by csg-edge (bundle {record['bundle']}) for "
                       f"{record['masks']} masks of {record['set']}. Synthetic images are not for diagnosis.",
        "datePublished": f"{record['began'][:4]}-{record['began'][4:6]}-{record['began'][6:]}", "version": "1.0.0",
        "distribution": [*files, *sets],
        "recordSet": [{
            "@type": "cr:RecordSet", "@id": "table", "name": "table", "description": "a record for each image",
            "field": [{
                "@type": "cr:Field", "@id": f"table/{column}", "name": column, "dataType": "sc:Text",
                "source": {"fileObject": {"@id": table}, "extract": {"column": column}},
            } for column in columns],
        }],
    })  # fmt: skip


def _object(path: Path, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": path.name, "name": path.name, "contentUrl": path.name, "encodingFormat": kind,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip


def _set(folder: Path) -> dict[str, Any]:
    first = next((path for path in sorted(folder.iterdir())), folder)
    suffix = ".gz" if first.name.endswith(".nii.gz") else first.suffix
    return {
        "@type": "cr:FileSet", "@id": folder.name, "name": folder.name, "includes": f"{folder.name}/*{suffix}",
        "encodingFormat": KINDS.get(suffix, "application/octet-stream"),
    }  # fmt: skip
